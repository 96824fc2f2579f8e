"""Paired KTO, or SimpleKTO, a historical form, with a loss of ours.

Sources: HALOs, December 2023; TRL's `kto_pair` until June 2024.

1 - σ(β (r_w - KL_l)) of each chosen and 1 - σ(β (KL_w - r_l)) of each rejected completion, mean over both
r = log π/π_ref;  KL_w = max(0, mean over the batch of r_w),  KL_l = max(0, mean over the batch of r_l)
Gradients go through both KL terms.

It is not KTO (see `kto`): the reference point is the mean log-ratio of the other half of the batch instead of
mismatched completions, it is not detached, and there are no weights. The rows of a batch are coupled, so
batch size and accumulation are part of the method (per device, as in TRL). Deviation from that code: a batch
holds rows of like length (training/trainers.py), and both means are over such a batch.

rewards/*, logps/* and the other curves: as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("kto_pair", "beta")
