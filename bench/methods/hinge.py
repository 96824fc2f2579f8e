"""RSO's hinge (Liu et al. 2023, arXiv 2309.06657, `hinge-norm`), trained by TRL's DPOTrainer (`hinge`).

max(0, 1 - β Δ),  Δ = [log π/π_ref](y_w) - [log π/π_ref](y_l)

Only the loss is RSO's; its rejection sampling of the pairs is not included. It is not SLiC-HF, which has no
reference and adds an NLL term (see `slic`). β is 1 / margin: β 0.1 asks for 10 nats between the log-ratios.

rewards/*, logps/* and the other curves: as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, trl_loss

chain = one_shot
make_trainer = trl_loss("hinge")
