"""Reasons why a number of a cell is missing. Tables print them, except the expected ones in BY_DESIGN."""

from __future__ import annotations

GRAM = 3  # number of words

NOTHING_SCORED = "nothing was scored"
NO_GRAM = f"no completion has {GRAM} words"
FROM_FILE = "the completions come from a file: there is no model to ask"
OWN_REFERENCE = "the start model is its own reference"
NO_JUDGE = "no judge is set (judge=none)"
ONLY_RATINGS = "the judge gives ratings and compares with nobody"
ONLY_PREFERENCES = "the judge compares and gives no ratings"
NO_TRUTH = "no label's truth is known"
NO_HELDOUT_ROW = "no held-out row of this kind"
DATA_ARE_PAIRS = "for unpaired data; these are pairs: see reward_accuracy"
DATA_ARE_UNPAIRED = "the data are unpaired: see reward_auc"
ONE_LABEL = "held-out rows are all of one label"
BEST_OF_N_MOVES_NOTHING = "best of n moves no log-probability"
NOTHING_DISTRUSTED = "no label was distrusted"
NOTHING_WRONG = "no label is known to be wrong"
TASK_NOT_FINITE = "lm_eval gives no finite number"

BY_DESIGN = {OWN_REFERENCE, FROM_FILE, DATA_ARE_PAIRS, DATA_ARE_UNPAIRED}
# In a row with several evaluations, another one may give what one does not.
BY_EVALUATION = BY_DESIGN | {ONLY_RATINGS, ONLY_PREFERENCES}
