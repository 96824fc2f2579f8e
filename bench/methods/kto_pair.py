"""Paired KTO, or SimpleKTO (HALOs, December 2023; TRL's `kto_pair` until June 2024), a named historical form; a loss of ours.

1 - σ(β (r_w - KL_l)) of each chosen and 1 - σ(β (KL_w - r_l)) of each rejected completion, mean over both;  r = log π/π_ref
KL_w = max(0, mean over the batch of r_w),  KL_l = max(0, mean over the batch of r_l); gradients go through both

Not KTO: the reference point is the mean log-ratio of the other half of the batch and not of mismatched completions, it is not detached, and
there are no weights; see `kto`. The rows of a batch are coupled, so batch size and accumulation are part of the method (per device, as
in TRL). Deviation from that code: a batch holds rows of like length (training.py), which both means are over.

rewards/*, logps/* and the other curves: as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("kto_pair", "beta")
