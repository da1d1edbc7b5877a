"""A trained scorer: the small network that scores visual tokens, and the folder that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import cosine_similarity, gelu, layer_norm, linear

from ..errors import BadValue, UnfitSettings
from ..tokens import VisualTokens

WEIGHTS, FACTS = "scorer.safetensors", "scorer.json"
"""The files of a scorer's folder."""

KNOWN_ROWS = 256
"""First rows of the LLM's input embeddings whose mean tells which model a scorer is for."""

_SAME = 0.9
"""Cosine of two such means from which on they are of one model, adapted or in another dtype perhaps."""

_ACCEPTED = f"accepted is a folder with {WEIGHTS} and {FACTS}, as `gprune fit` writes it"


@dataclass(frozen=True)
class ScorerFacts:
    """What is known of a scorer beside its weights.

    Args:
        model: hub id or folder of the model that it was trained on, or "embedded".
        family: the model_type of that model.
        width: of the visual tokens.
        question: whether it reads the question too.
        trained_on: in words.
    """

    model: str
    family: str
    width: int
    question: bool
    trained_on: str


@dataclass(frozen=True, eq=False)
class Scorer:
    """A network that scores every visual token by what it is, what its view shows, and what is asked.

    Each token x is normalised to mean 0 and variance 1 and becomes l = gelu(A x + a), [h], the local features; the mean
    of l over the view is the global features g. With a question, each of its embeddings becomes a word w likewise, and
    a token hears the words as attention has it: r = softmax(l w / sqrt(h)) w. The score is
    c gelu(B [l, g, r, l * r] + b), without r and l * r where no question is read.

    Args:
        weights: float32 by name: "token.weight" [h, d] and "token.bias" [h] are A and a; "word.weight" [h, d] and
            "word.bias" [h] the same for words; "mix.weight" [h, 2 h], or [h, 4 h] with a question, and "mix.bias" [h]
            are B and b; "score.weight" [1, h] is c.
        mark: float32 [d], by which the model is known again, see `model_mark`.
        facts: what else is known of it.
    """

    weights: Mapping[str, Tensor]
    mark: Tensor
    facts: ScorerFacts

    @classmethod
    def untrained(cls, facts: ScorerFacts, mark: Tensor, generator: torch.Generator) -> Scorer:
        """A scorer with random weights, whose hidden width is a quarter of the tokens' and at least 16."""
        width, hidden = facts.width, max(16, facts.width // 4)

        def matrix(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)

        weights = {"token.weight": matrix(hidden, width), "token.bias": torch.zeros(hidden)}
        if facts.question:
            weights |= {"word.weight": matrix(hidden, width), "word.bias": torch.zeros(hidden)}
        weights["mix.weight"] = matrix(hidden, hidden * (4 if facts.question else 2))
        return cls(
            {**weights, "mix.bias": torch.zeros(hidden), "score.weight": matrix(1, hidden)}, mark.float().cpu(), facts
        )

    def scores(self, tokens: VisualTokens) -> Tensor:
        """The score of every token: float32 [N], 0 on fixed rows; gradients reach the weights.

        Raises:
            BadValue: the tokens have another width than those that it was trained on.
        """
        features, facts = tokens.features, self.facts
        if features.shape[1] != facts.width:
            raise BadValue(
                f"this scorer is for tokens of width {facts.width}, those of {facts.model}, but these have "
                f"{features.shape[1]}; give a scorer that was trained on this model"
            )
        weights = {name: weight.to(features.device) for name, weight in self.weights.items()}
        with torch.autocast(features.device.type, enabled=False):
            local = self._hidden(features, weights, "token")
            words = [self._hidden(each, weights, "word") for each in tokens.questions] if facts.question else []
            scores = local.new_zeros(len(local))
            for view in tokens.views:
                if not len(view):
                    continue
                own = local[view.rows]
                parts = [own, own.mean(0).expand_as(own)]
                if facts.question:
                    heard = words[view.image]
                    read = (own @ heard.T / math.sqrt(own.shape[1])).softmax(-1) @ heard
                    parts += [read, own * read]
                mixed = gelu(linear(torch.cat(parts, dim=1), weights["mix.weight"], weights["mix.bias"]))
                scores = scores.index_put((view.rows,), linear(mixed, weights["score.weight"]).squeeze(1))
        return scores

    @staticmethod
    def _hidden(features: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
        normed = layer_norm(features.float(), features.shape[1:])
        return gelu(linear(normed, weights[f"{name}.weight"], weights[f"{name}.bias"]))

    def flops(self, count: int) -> int:
        """Floating-point operations of scoring so many tokens of a view, those of the question left out."""
        hidden, mixed = self.weights["mix.weight"].shape
        return 2 * count * hidden * (self.facts.width + mixed + 1)

    def check_model(self, family: str, embeddings: Tensor) -> None:
        """Raise unless this scorer was trained on a model, or one that was adapted a little from the same.

        Args:
            family: the model_type.
            embeddings: floating [vocabulary, d], the LLM's input embeddings.

        Raises:
            UnfitSettings: it was trained on another; names it.
        """
        facts = self.facts
        found = f"of the family {family} with tokens of width {embeddings.shape[1]}"
        if (family, embeddings.shape[1]) == (facts.family, facts.width):
            if embeddings.is_meta or cosine_similarity(model_mark(embeddings), self.mark, dim=0) >= _SAME:
                return
            found = f"another one of the family {family}: its embeddings differ"
        raise UnfitSettings(
            f"this scorer was trained on {facts.model} ({facts.family}, tokens of width {facts.width}), and this model "
            f"is {found}; train one on this model with `gprune fit`"
        )

    def save(self, folder: Path) -> None:
        """Write it to a folder, which is made if it is not there: the facts last, with the checksum of the weights."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: weight.detach().float().cpu().contiguous() for name, weight in self.weights.items()}
        data = save({**tensors, "mark": self.mark})
        facts = {**asdict(self.facts), "sha256": sha256(data).hexdigest()}
        for name, content in ((WEIGHTS, data), (FACTS, (json.dumps(facts, indent=1) + "\n").encode())):
            part = folder / f"{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)

    @classmethod
    def load(cls, folder: Path) -> Scorer:
        """The scorer in a folder.

        Raises:
            BadValue: there is none, or it is damaged.
        """
        for name in (WEIGHTS, FACTS):
            if not (folder / name).is_file():
                raise BadValue(f"{folder} holds no scorer: {name} is not there; {_ACCEPTED}; check the path")
        try:
            facts = json.loads((folder / FACTS).read_text())
            data = (folder / WEIGHTS).read_bytes()
            if facts.pop("sha256") != sha256(data).hexdigest():
                raise ValueError(f"{FACTS} is not of these weights")
            tensors, known = load(data), ScorerFacts(**facts)
            expected = cls.untrained(known, torch.empty(0), torch.Generator()).weights
            shapes = {name: tuple(weight.shape) for name, weight in expected.items()}
            if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != {**shapes, "mark": (known.width,)}:
                raise ValueError(f"{WEIGHTS} is not of the network that {FACTS} describes")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            raise BadValue(f"the scorer in {folder} is damaged ({error}); {_ACCEPTED}; write it again") from error
        mark = tensors.pop("mark")
        return cls(tensors, mark, known)


def model_mark(embeddings: Tensor) -> Tensor:
    """By what a model is known again: float32 [d], the mean of the first of its input embeddings [vocabulary, d]."""
    return embeddings[:KNOWN_ROWS].detach().float().mean(0).cpu()
