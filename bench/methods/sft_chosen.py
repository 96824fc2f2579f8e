"""SFT on the chosen completions, a baseline, with a loss of ours.

It is "Preferred-FT" in Rafailov et al. 2023, section 6.

-log π(y_w)/|y_w|,  mean over completions

Deviation: the start stage and TRL's `sft` pool the tokens of a batch, which weighs long completions more.
Here each completion counts once. The rejected completion goes through the model only for the curves, so a
step costs as much as DPO's.

The loss does not use the reference. rewards/* are log π/π_ref in nats (SFT has no β), so that methods can be
compared. The other curves are as for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("sft_chosen", learns_from=("chosen",))
