"""IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17) with length means, trained by TRL's DPOTrainer (`ipo`).

(h - 1/(2τ))²,  h = [log π/π_ref](y_w) / |y_w| - [log π/π_ref](y_l) / |y_l|,  τ set as `beta`

Deviation: the paper's h is a difference of sums. Its authors confirmed per-token means to TRL (#1265), and
every result since January 2024 uses them. At τ = 0.1 the loss asks for 5 nats a token and stays near 25; this
is expected.

rewards/*: β log π/π_ref with sums, as TRL logs them for every loss, so that methods can be compared.
"""

from __future__ import annotations

from bench.methods import one_shot, trl_loss

chain = one_shot
make_trainer = trl_loss("ipo")
