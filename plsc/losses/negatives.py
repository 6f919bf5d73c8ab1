"""What a loss does to the cosines of the classes that are not a sample's own, before they enter its sum.

The cosines of a chunk are [B, G]: B rows of class centers, G gathered batch. Three changes, in this order:

    sub-centers           of the K rows of a class only the one with the greatest cosine counts, the first at ties
    inter-class filter    a cosine above a limit leaves the sum: its class is likely the same person
    change of the value   v(cos) with a derivative in the cosine's place, as CurricularFace's hard negatives

What leaves the sum has an exponential of 0, and thus no part in the loss and in the gradients. A changed value enters
the sum as v; in the products of both gradients its exponential is multiplied by v'(cos).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import paddle

from plsc.losses.logit_ops import Mask, above, all_but_greatest, drop_


@runtime_checkable
class NegativesMargin(Protocol):
    """A margin that changes the cosines of other classes too.

    Attributes:
        needs_all_cosines: True, so that `target` is right for all samples on every rank.
        negatives_bound: the greatest value of `|v|`, at least 1; times s it is the greatest logit.
    """

    needs_all_cosines: bool
    negatives_bound: float

    def negatives(self, cosine: paddle.Tensor, *, target: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """v(cos) and v'(cos), each like `cosine`; None for a derivative of 1.

        It is called after the margin itself, chunk by chunk, twice for each chunk, with the same result.

        Args:
            cosine: [B, G] of B centers. Those of excluded classes are far below -1; what is returned for them must be
                finite.
            target: [G], what the margin returned for the samples' own classes.
        """
        ...


class Negatives(NamedTuple):
    """The changes of one loss.

    Attributes:
        subcenters: K, consecutive rows that are one class.
        filter_above: the limit of the inter-class filter; None for none.
        margin: changes the values; None for none.
    """

    subcenters: int = 1
    filter_above: float | None = None
    margin: NegativesMargin | None = None

    @property
    def changes_nothing(self) -> bool:
        """Whether the logits of other classes are their cosines times the scale."""
        return self == Negatives()

    def dropped(self, cosine: paddle.Tensor) -> list[Mask]:
        """Masks [B, G] of what leaves the sum."""
        masks = []
        if self.subcenters > 1:
            masks.append(all_but_greatest(cosine, group=self.subcenters))
        if self.filter_above is not None:
            masks.append(above(cosine, self.filter_above))
        return masks

    def values(self, cosine: paddle.Tensor, target: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """(v, v') [B, G]."""
        return (cosine, None) if self.margin is None else self.margin.negatives(cosine, target=target)


def drop_all_(logits: paddle.Tensor, masks: list[Mask]) -> paddle.Tensor:
    """Logits [B, G] without those of any mask, in place."""
    for mask in masks:
        logits = drop_(logits, mask)
    return logits
