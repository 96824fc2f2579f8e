"""SFT on the chosen completions ("Preferred-FT" in Rafailov et al. 2023, section 6), a baseline; a loss of ours.

-log π(y_w)/|y_w|,  mean over completions

Deviation from the start stage and TRL's `sft`: those pool the tokens of a batch, which weighs long completions more; here each completion
counts once. The rejected completion goes through the model for the curves only, so a step costs what DPO's costs.

The reference takes no part in the loss. rewards/*: log π/π_ref in nats (SFT has no β), so that methods can be compared; other curves as
for DPO.
"""

from __future__ import annotations

from bench.methods import one_shot, own_loss

chain = one_shot
make_trainer = own_loss("sft_chosen", learns_from=("chosen",))
