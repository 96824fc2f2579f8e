"""CPO (Xu et al. 2024, arXiv 2401.08417, section 3), reference-free, with a loss of ours.

-log σ(β [log π(y_w) - log π(y_l)]) - α log π(y_w)/|y_w|

This is DPO with a uniform reference, plus behaviour cloning of the chosen completion. Deviation: the NLL term
is a mean over the completion's tokens and then over pairs. TRL (trl.experimental.cpo) pools the tokens of a
batch.

The loss does not use the reference. rewards/* are β log π/π_ref with sums, as for DPO, so that methods can be
compared. The other curves are as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("cpo", "beta", "alpha")
