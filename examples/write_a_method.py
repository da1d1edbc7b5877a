# %% [markdown]
"""Write a method: a score for every token, or a set of tokens; budget, ties, checks and attaching come with the base.

The first is that of L2 norms turned round. The second keeps a checkerboard of each view, as far as the budget goes.
"""

# %% A method that scores. Features are floating [N, d], the tokens of all views; higher scores are kept first.
from dataclasses import dataclass

import torch
from torch import Tensor

from gprune import ScorePruner, SetPruner, View, VisualTokens


@dataclass
class Quiet(ScorePruner):
    """Keep the tokens with the smallest L2 norm."""

    def score(self, tokens: VisualTokens) -> Tensor:
        """The norm, smallest first."""
        return -tokens.features.float().norm(dim=-1)


print(Quiet(keep=2).select(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])).kept)

# %% A method that chooses a set: k rows of a view. `view.grid` is (rows, columns), or None where that is unknown.


@dataclass
class Checkerboard(SetPruner):
    """Keep the black squares of each view first, from the top; then the white ones."""

    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Black first: the sort is stable."""
        columns = view.grid[1] if view.grid else 1
        place = torch.arange(len(view), device=view.rows.device)
        white = (place // columns + place % columns) % 2
        return view.rows[white.sort(stable=True).indices[:k]]


# %% Both go on any model that can be pruned, and what is wrong with a method is said when it chooses.
from gprune.images import open_image
from gprune.models import load
from gprune.prompt import build_inputs

model, processor = load("embedded")
picture = open_image("docs/images/scene.png")
inputs = build_inputs(model, processor, [([picture], "what text is written?")])
for method in (Quiet(keep=0.5), Checkerboard(keep=0.5)):
    with method(model) as run:
        output = model.generate(**inputs, max_new_tokens=8)
    print(method, processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

# %% What the second kept. How a method becomes one of gprune's own, with a name on the command line: CONTRIBUTING.md.
from gprune.draw import draw

drawn = draw(picture, [("checkerboard", run.images[0])])
drawn.save("checkerboard.png")
drawn
