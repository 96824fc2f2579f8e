"""SLiC-HF (Zhao et al. 2023, arXiv 2305.10425, eq. 4), reference-free, with a loss of ours.

max(0, δ - log π(y_w) + log π(y_l)) - λ log π(y_ref),  sums;  y_ref := y_w,  λ set as `lambda_nll`

Deviations: the paper's y_ref is the SFT target or the best of the ranked samples. Here it is the chosen
completion, as in the KTO paper and in HALOs (legacy). The defaults δ 1 and λ 0.1 are theirs; the SLiC paper
prints no λ. Pairs are used as they are (the paper's "direct" route). The NLL term is a sum, so it weighs long
completions more.

The loss does not use the reference. rewards/* are log π/π_ref in nats (SLiC has no β), so that methods can be
compared. The other curves are as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("slic", "delta", "lambda_nll")
