"""SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6), reference-free, with a loss of ours.

-log σ(β [log π(y_w)/|y_w| - log π(y_l)/|y_l|] - γ)

γ is absolute, as in the paper. The paper's code sets γ/β (`gamma_beta_ratio`, 0.5 to start with). TRL has
SimPO only in trl.experimental.cpo, with an NLL term unless `cpo_alpha=0`. Deviations: none in the loss.

The loss does not use the reference. rewards/* are β log π/π_ref with sums, as for DPO, so that methods can be
compared; they are not SimPO's own length-normalised reward. SimPO's β is about 20 times DPO's. The other
curves are as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("simpo", "beta", "gamma")
