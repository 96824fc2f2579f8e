"""SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6), reference-free; a loss of ours.

-log σ(β [log π(y_w)/|y_w| - log π(y_l)/|y_l|] - γ)

γ is absolute, as in the paper; its code sets γ/β (`gamma_beta_ratio`, 0.5 to start with). TRL has it in trl.experimental.cpo only, with an
NLL term unless `cpo_alpha=0`. Deviations: none in the loss.

The reference takes no part in the loss. rewards/*: β log π/π_ref with sums, as for DPO (and not SimPO's own, length-normalised
reward), so that methods can be compared; note that β is about 20 times DPO's. Other curves as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("simpo", "beta", "gamma")
