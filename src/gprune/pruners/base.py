"""What every method shares, and what those share that prune before the LLM: budget, checks, the way onto a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from ..checks import OneOf, check_settings, setting
from ..coverage import shortest_cover
from ..errors import BadValue, NonFiniteFeatures
from ..kernels.ragged import top_per_view
from ..tokens import AnyBudget, Cover, Keep, View, VisualTokens, follows_picture, kept_count
from .shares import tile_counts

if TYPE_CHECKING:
    from ..attach import Run

Scope = Literal["view", "image"]
Shares = Literal["own", "global"]
Positions = Literal["original", "contiguous"]
Need = Literal["attention", "keys", "middle attention", "question", "place", "mask", "frames", "tiles", "scorer"]
"""Attention that a token receives in the vision tower, its key there, the attention in a middle layer, the question
about its image, where it lies in the image, the mask of that, the frames of a video, the tiles of an image, and a
scorer trained for the model."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What a method kept.

    Args:
        kept: int64 [K], sorted unique rows of the whole `VisualTokens`, fixed rows included.
        scores: float32 [N], NaN on fixed rows; None for methods without scores.
        edge_share: float32 [n_views], share of all pairs of distinct tokens of a view that are edges;
            None for methods without a graph. With scope="image" an image is one view.
        isolated_share: float32 [n_views], share of the tokens of a view whose only edge is their own.
        features: floating [K, d], what the LLM gets at the place of each kept token where others were merged into
            it; None: the tokens as they are.
        order: int64 [k], the kept rows of one view after the other, each in the order in which they were chosen; None
            for methods that score tokens, or choose all at once.
        coverage: float32 [n_views], the share of each view that is covered; None unless `keep` is `cover(...)`.
    """

    kept: Tensor
    scores: Tensor | None = None
    edge_share: Tensor | None = None
    isolated_share: Tensor | None = None
    features: Tensor | None = None
    order: Tensor | None = None
    coverage: Tensor | None = None


Acts = Literal["nowhere", "before the tower", "in the tower", "before the LLM", "in the LLM"]
"""Where a method drops visual tokens."""


class Method(ABC):
    """A method with its settings; called on a model it attaches: `with GPrune(keep=0.3)(model) as run: ...`."""

    keep: Keep
    """The budget: a float in (0, 1] is a ratio, an int >= 1 is a number of tokens per image, `cover(0.9)` as many as
    cover 90 % of a picture, "own" the number that the method finds itself, where it does."""

    name: ClassVar[str]
    """Name on the command line and in tables: the class's own in lower case."""

    needs: ClassVar[tuple[Need, ...]] = ()
    """What the method must know beside the features of the tokens."""

    merges: bool = False
    """Whether it puts merged features in the place of tokens."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    @abstractmethod
    def acts(self) -> Acts:
        """Where it drops visual tokens."""

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods that it is made of, in the order in which they act: itself, if it is one."""
        return (self,)

    @property
    def keeps_all(self) -> bool:
        """Whether it drops nothing whatever the image."""
        return isinstance(self.keep, float) and self.keep == 1

    def attach(self, model: Any) -> Run:
        """Prune on every call of a transformers model until `run.detach()`, or until its `with` block ends.

        A model that has a run already is pruned by this one alone until then, and by that one again afterwards; the
        run says so when it is shown.

        Raises:
            UnsupportedModel: the model is not of a family that gprune can prune; names those it can.
        """
        from ..attach import attach

        return attach(self, model)

    def __call__(self, model: Any) -> Run:
        """`attach`, for `with pruner(model) as run`."""
        return self.attach(model)

    def check_model(self, family: str, embeddings: Tensor) -> None:
        """Raise UnfitSettings if the method was made for another model than that it is attached to.

        Args:
            family: the model_type.
            embeddings: floating [vocabulary, d], the LLM's input embeddings.
        """
        return

    def with_seed(self, seed: int) -> Self:
        """The method drawing with another seed; one that does not draw is what it was."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """The method by name with all of its settings, of values that JSON has; see `from_dict`.

        `cover(0.9)` is {"cover": 0.9, "at_most": 1.0}, a mask is lists of bools, and a `Chain` has a dictionary for
        each of its methods.
        """
        from .recipe import as_recipe

        return as_recipe(self)

    @classmethod
    def from_dict(cls, recipe: Mapping[str, Any]) -> Method:
        """The method that `to_dict` told of; settings that are left out are the defaults.

        Args:
            recipe: "method" is the name; of a class of your own, call its own `from_dict`.

        Raises:
            BadType, BadValue: an unknown method or setting, or a value that the method refuses.
        """
        from .recipe import of_recipe

        return of_recipe(recipe, cls)


@dataclass
class Unpruned(Method):
    """No pruning: the model as it is, where a method is asked for; inside another run's block, not even that run's."""

    keep: Keep = setting(1.0, OneOf((1.0,)))
    name = "none"

    @property
    def acts(self) -> Acts:
        """Nowhere: every token is kept."""
        return "nowhere"


@dataclass
class Pruner(Method):
    """A method that chooses the visual tokens that reach the LLM.

    Args:
        keep: float in (0, 1], the ratio of tokens kept in every view; int >= 1, the tokens kept per image; or
            `cover(0.9)`, as few of the method's order as cover 90 % of every view, where it is `ordered`.
        scope: "view" ranks the views of an image apart, as the paper does; "image" ranks all its tokens
            together.
        shares: "own" keeps the ratio of every view; "global" lets the tiles of a high-resolution grid, ranked apart,
            share what it keeps by how much each stands out in the base view (GlobalCom2, arXiv 2501.05179).
        positions: "original" leaves gaps in the position ids where tokens were dropped, as the paper does;
            "contiguous" renumbers what is left.

    Raises:
        BadType, BadValue: an argument is not one of the values above.
    """

    keep: Keep = setting(0.3, AnyBudget())
    _: KW_ONLY
    scope: Scope = setting("view", OneOf(get_args(Scope)))
    shares: Shares = setting("own", OneOf(get_args(Shares)))
    positions: Positions = setting("original", OneOf(get_args(Positions)))

    finds_number: ClassVar[bool] = False
    """Whether it takes keep="own", and finds in every view how many tokens are to be kept."""

    ordered: ClassVar[bool] = False
    """Whether it puts tokens in an order, of which a budget is the beginning."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.keep == "own" and not self.finds_number:
            raise BadValue(
                f"keep='own' is the number of tokens that a method finds itself, and {name} finds none; pass a ratio "
                f"or a number of tokens, or take PruMerge"
            )
        super().__post_init__()
        if isinstance(self.keep, Cover) and not self.ordered:
            raise BadValue(
                f"keep={self.keep!r} goes down a method's order of tokens until they cover enough, and {name} has "
                f"none: it chooses anew for every number of tokens; pass a ratio or a number of tokens, or take "
                f"GraphCover"
            )
        if self.shares == "global":
            self._check_can_share()
            self.needs = (*dict.fromkeys((*self.needs, "attention", "tiles")),)  # type: ignore[misc]

    @torch.no_grad()
    def select(self, tokens: VisualTokens | Tensor) -> Selection:
        """Choose the tokens to keep; no model needed.

        Args:
            tokens: the visual tokens of one image or a batch, or floating [N, d]: one image, one view.

        Returns:
            Exactly `kept_count` rows of every view, or as many as `keep` says of this picture, and all fixed rows.

        Raises:
            NonFiniteFeatures: some features are NaN or Inf; names the image.
            BadType, BadValue: features are not floating point or not 2-D, or the tokens come without what the
                method needs beside them.
        """
        if not isinstance(tokens, VisualTokens):
            tokens = VisualTokens.of(tokens)
        _check_finite(tokens)
        self._check_needs(tokens)
        ranked = self.ranked(tokens)
        counts = tile_counts(tokens, self._budget(tokens)) if self.shares == "global" else self._budget(ranked)
        tokens, selection = ranked, self._select(ranked, counts)
        return _cut_short(selection, tokens, counts, self.keep.share) if isinstance(self.keep, Cover) else selection

    def ranked(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens with the views that are ranked: as they are, one per image, or tiles apart."""
        if self.scope == "image":
            return tokens.per_image()
        return tokens.per_tile() if self.shares == "global" else tokens

    @property
    def acts(self) -> Acts:
        """Before the LLM, on what the projector gives it."""
        return "before the LLM"

    def warning(self, selection: Selection) -> str | None:
        """What a user should hear about a selection that means little, or None."""
        return None

    def selection_flops(self, count: int, kept: int, width: int, key_width: int) -> int:
        """Floating-point operations of choosing tokens of one view, those of its matrix products: 2 per multiply-add.

        Args:
            count, kept: tokens of the view, and how many of them are kept.
            width: of the features.
            key_width: of the vision tower's keys, for methods that need them.
        """
        return 0

    @abstractmethod
    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        """Keep counts[i] tokens of tokens.views[i]."""

    def _check_needs(self, tokens: VisualTokens) -> None:
        name, count, images = type(self).__name__, len(tokens.features), len(tokens.sizes)
        for need in self.needs:
            if need == "question":
                if len(tokens.questions) != images or not all(map(len, tokens.questions)):
                    raise BadValue(
                        f"{name} needs the question about each image; tokens.questions has {len(tokens.questions)} for "
                        f"{images} images; give embeddings [q, d] for each, q >= 1, or attach {name} to a model"
                    )
            elif need in ("place", "mask", "frames", "tiles", "scorer"):
                continue  # of each view, when it is there, or of the method itself
            elif need not in tokens.signals or len(tokens.signals[need]) != count:
                raise BadValue(
                    f"{name} needs the {need} of the vision tower, which features alone do not tell; give "
                    f"tokens.signals[{need!r}], a row for each of the {count} tokens, or attach {name} to a model"
                )
            elif not tokens.signals[need][~tokens.fixed].isfinite().all():
                raise BadValue(
                    f"the {need} of some tokens is NaN or Inf although their features are finite; only fixed rows may "
                    f"have none; if the vision tower runs in float16, load it in bfloat16 or float32"
                )

    def _check_can_share(self) -> None:
        """Refuse to share a budget over tiles where that has no meaning."""
        if follows_picture(self.keep):
            reason = f"keep={self.keep!r} says of every view itself how much is kept, which leaves nothing to share"
        elif self.scope == "image":
            reason = 'scope="image" ranks all tokens of an image together, so that its tiles have no budgets'
        elif self.acts != "before the LLM":
            reason = "what is merged inside the vision tower is as much of every tile"
        elif {"place", "frames"} & set(self.needs):
            reason = "it goes by whole pictures, of which a tile is a part"
        else:
            return
        raise BadValue(f'shares="global" does not go with {type(self).__name__} so: {reason}; pass shares="own"')

    def _budget(self, tokens: VisualTokens) -> list[int]:
        """How many tokens of each view are kept at most."""
        most = self.keep.at_most if isinstance(self.keep, Cover) else self.keep
        counts = [0] * len(tokens.views)
        for image in range(len(tokens.sizes)):
            indices = [i for i, view in enumerate(tokens.views) if view.image == image]
            for i, k in zip(indices, kept_count([len(tokens.views[i]) for i in indices], most), strict=True):
                counts[i] = k
        return counts


@dataclass
class ScorePruner(Pruner):
    """A method that scores every token and keeps the highest of each view; ties go to the lower index."""

    ordered: ClassVar[bool] = True

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Tensor:
        """Score every token: real [N], higher is kept first; what it says of fixed rows is ignored."""

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        return keep_top(self.score(tokens), tokens, counts)


@dataclass
class SetPruner(Pruner):
    """A method that chooses a set of tokens without scoring each.

    One that is `ordered` chooses the same first rows for every k.
    """

    @abstractmethod
    def choose(self, tokens: VisualTokens, view: View, k: int) -> Tensor:
        """Choose k >= 1 distinct rows of `view`: int64 [k], indices into `tokens.features`."""

    def choose_together(self, tokens: VisualTokens, views: Sequence[View], k: int) -> Sequence[Tensor]:
        """`choose` for each of some views of equal size; a method that has a faster way says so here."""
        return [self.choose(tokens, view, k) for view in views]

    def _select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        mask = tokens.fixed
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (view, k) in enumerate(zip(tokens.views, counts, strict=True)):
            if k:
                alike[len(view), k].append(i)
        chosen = [tokens.rows[:0]] * len(tokens.views)
        for (_, k), indices in alike.items():
            views = [tokens.views[i] for i in indices]
            together = self.choose_together(tokens, views, k)
            self._check_chosen(together, views, k)
            for i, rows in zip(indices, together, strict=True):
                chosen[i] = rows
        if chosen:
            mask[torch.cat(chosen)] = True
        return Selection(mask.nonzero().squeeze(1), order=torch.cat(chosen) if self.ordered and chosen else None)

    def _check_chosen(self, chosen: Sequence[Tensor], views: Sequence[View], k: int) -> None:
        """Raise BadValue if what was chosen of some views of equal size is not k distinct rows of each."""
        wrong = [len(rows) != k for rows in chosen]
        if not any(wrong):
            found, accepted = torch.stack([*chosen]).sort().values, torch.stack([view.rows for view in views])
            places = torch.searchsorted(accepted, found).clamp_(max=accepted.shape[1] - 1)
            wrong = ((accepted.gather(1, places) != found).any(1) | (found.diff() == 0).any(1)).tolist()
        if any(wrong):
            first = wrong.index(True)
            raise BadValue(
                f"{type(self).__name__}.choose returned rows {chosen[first].tolist()} for a view of "
                f"{len(views[first])} tokens; accepted are exactly k={k} distinct entries of view.rows; "
                f"index view.rows to get them"
            )


def keep_top(scores: Tensor, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
    """Keep the counts[i] tokens of tokens.views[i] with the highest scores [N]; ties go to the lower index.

    Raises:
        BadValue: not one score per token, or a score is NaN or Inf.
    """
    mask = tokens.fixed
    if scores.shape != mask.shape:
        raise BadValue(
            f"scores have shape {tuple(scores.shape)} for {len(mask)} tokens; accepted is one score per row "
            f"of tokens.features, [N]; reduce over the feature dimension"
        )
    scores = scores.float().masked_fill(mask, torch.nan)
    if not scores[~mask].isfinite().all():
        raise BadValue(
            "some scores are NaN or Inf although the features are finite; accepted are finite scores; "
            "look for a division by zero, or for features too large to square in float32"
        )
    rows, sizes = tokens.rows, [len(view) for view in tokens.views]
    mask[rows[top_per_view(scores[rows], sizes, counts)]] = True
    # The number is known, so that the device need not be asked for it.
    number = len(mask) - len(rows) + sum(counts)
    return Selection(mask.int().argsort(descending=True, stable=True)[:number], scores)


def _cut_short(selection: Selection, tokens: VisualTokens, counts: Sequence[int], share: float) -> Selection:
    """Of what was kept, counts[i] tokens of tokens.views[i], as much of the order as covers a share of each view."""
    mask, shares, start = tokens.fixed, [], 0
    for view, k in zip(tokens.views, counts, strict=True):
        features = tokens.features[view.rows]
        if selection.order is not None:
            order = torch.searchsorted(view.rows, selection.order[start : start + k])
        else:
            assert selection.scores is not None
            order = selection.scores[view.rows].sort(descending=True, stable=True).indices[:k]
        number, covered = shortest_cover(features, order, share) if k else (0, 1.0)
        mask[view.rows[order[:number]]] = True
        shares.append(covered)
        start += k
    return replace(selection, kept=mask.nonzero().squeeze(1), order=None, coverage=torch.tensor(shares))


def _check_finite(tokens: VisualTokens) -> None:
    # A tenth of the time of `features.isfinite().all(-1)`; NaN is passed on by both.
    finite = tokens.features.amax(-1).isfinite() & tokens.features.amin(-1).isfinite()
    if finite.all():
        return
    for image, (size, end) in enumerate(zip(tokens.sizes, accumulate(tokens.sizes), strict=True)):
        bad = int((~finite[end - size : end]).sum())
        if bad:
            raise NonFiniteFeatures(
                f"image {image} (of {len(tokens.sizes)}, counted from 0): {bad} of its {size} visual tokens "
                f"contain NaN or Inf; features must be finite; if the model runs in float16, load it in "
                f"bfloat16 or float32"
            )
