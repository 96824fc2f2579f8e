"""IPO with sums, a historical form, with a loss of ours.

Paper: Azar et al. 2023 (arXiv 2310.12036, eq. 17 as printed).

(Δ - 1/(2τ))²,  Δ = [log π/π_ref](y_w) - [log π/π_ref](y_l),  τ set as `beta`

TRL computed this from v0.7.5 to v0.7.10 (November 2023 to January 2024), and the first version of Hugging
Face's comparison of DPO, IPO and KTO used it. SPA's fork, OpenRLHF and others still do. `ipo` is the form
with length means. If all completions have one length T, the two losses are the same: ipo(τ) = ipo_summed(τ/T)
/ T². Deviations from the paper: none.

rewards/*, logps/* and the other curves: as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("ipo_summed", "beta")
