# %% [markdown]
"""Compare methods on your own pictures, without labels.

The answers of the unpruned model are the reference: how far does each method leave them as they are? On the command
line this is `gprune fidelity`.
"""

# %% Your model, pictures and questions. Take a few dozen pictures such as you will use: one shows no difference.
from pathlib import Path

MODEL = "embedded"
PICTURES = sorted(Path("docs/images").glob("scene*.png"))
QUESTIONS = ["what text is written?", "how many shapes are there?"]
METHODS = ["auto", "gprune", "random"]

# %%
from gprune import fidelity
from gprune.models import load

model, processor = load(MODEL)
items = [([picture], question) for picture in PICTURES for question in QUESTIONS]
found = fidelity(model, processor, items, METHODS, keeps=[0.3], max_new_tokens=8)

# %% The share of tokens that stay the likeliest, and the KL divergence of the first one.
print(f"{'method':12} {'keep':>5} {'agree':>7} {'first KL':>9}")
for row in found.rows:
    print(f"{row['method']:12} {row['keep']:>5} {row['agreement']:>7.1%} {row['first_kl']:>9.3f}")

# %% The smallest budget that leaves 95 % of the tokens as they are.
print(found.recommendation(0.95))

# %% What they keep of the first picture.
from gprune.answering import images_kept
from gprune.draw import draw
from gprune.images import open_image
from gprune.prompt import build_inputs
from gprune.spec import parse_pruner

picture = open_image(PICTURES[0])
inputs = build_inputs(model, processor, [([picture], QUESTIONS[0])])
drawn = draw(picture, [(name, images_kept(parse_pruner(name, keep=0.3), model, inputs)[0]) for name in METHODS])
drawn.save("methods.png")
drawn
