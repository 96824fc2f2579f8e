"""Self-rewarding language models (Yuan et al. 2024, arXiv 2401.10020, section 2).

The policy judges its own samples by writing, and learns from the best against the worst of them.

    M_0 the start model (iteration 0)
    M_1 = SFT(M_0; instructions IFT + evaluations EFT) (iteration 1)        for t = 2 ... iteration:
    y_1 ... y_N ~ M_{t-1}(.|x), x new;  each judged by M_{t-1}, the mean of several judgements
    AIFT(M_{t-1}): the highest against the lowest, ties dropped
    M_t = DPO(M_{t-1}; AIFT(M_{t-1})), against M_{t-1}

Judgements that cannot be read are dropped and counted. A prompt with fewer than two scores left is unscored.
`judge_prompt` has four forms (bench/judges/self_judge.py), among them the paper's additive one and its
multiple-choice ablation.

Other ablations and controls: `eft: false` (M_1 from IFT alone); `learns_from: best` (positives only: SFT on
the highest); `labeller`: a reward model (a folder, or trained on the labelled pairs), the world's annotator,
the shorter one, a coin.

In the controlled world IFT is the start model's demonstrations, once more. EFT is written from the known
truth. It judges the start model's samples of the labelled prompts, and other completions of every quality to
them. So it is not a method of few labels there. New prompts come from the task family, because tiny models
cannot write any.

Outside the world IFT is the chosen completions of the labelled pairs, or a file (`ift`). SFT(M_0; IFT) itself
writes the judgements for EFT. They are kept if they agree with the pair, and the most frequent score is
thinned, as in the paper. Or EFT is a file (`eft`). New prompts come from a file (`prompts`), or a model writes
them after eight examples, six of IFT and two written before, as in Self-Instruct: M_0, or the model that
`prompt_writer` names (section 3.1.1 has Llama 2-Chat 70B in every iteration). `n_prompts` counts prompts, one
number for each of M_2, M_3, ...; pairs are fewer, since ties are dropped. The paper gives the numbers of
pairs (3,964 and 6,942), not of prompts. With files for IFT and EFT no labelled pair is learned from
(`data.fraction: 0`).

Deviations: samples and judgements are drawn at top_p 1 (the paper: 0.9). Positives only learns from the
highest of this iteration's pairs and starts from M_{t-1} (the paper: perfect scores, added to IFT + EFT). M_1
pools the tokens of a batch, as the start stage does. No checkpoint is chosen by a judge.

judge_*: how well M_t judges, on held-out rankings: four samples of the start model per prompt, or the file's
held-out pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from bench.config import (
    Cell,
    Decoding,
    Dpo,
    SeedTraining,
    SelfRewarding,
    SftChosen,
    Training,
    WorldData,
    WorldModel,
)
from bench.methods import iterations
from bench.planning import pieces
from bench.planning.inputs import Ground, Policy
from bench.store.keys import Input, Stage
from bench.store.stage_settings import (
    SELF_JUDGE_READING,
    ConversationSft,
    DemonstrationData,
    JudgeQuestionData,
    KeptEvaluationData,
    PromptRequestData,
    SelfJudgeSettings,
    SelfLabels,
    SftSettings,
    SupervisedData,
    TrueEvaluationData,
    WrittenData,
    WrittenPromptData,
    stage,
)

RANKED = 4  # samples per held-out prompt
N_KNOWN, N_WRITTEN = 6, 2  # examples in a request for a new prompt, as in Self-Instruct
REQUESTS = 4  # per prompt wanted, because most prompts that a model writes are like a known one
WRITING = Decoding(temperature=0.6, top_p=0.9, max_new_tokens=200)


def chain(cell: Cell, ground: Ground) -> Policy:
    settings = cell.method
    assert isinstance(settings, SelfRewarding)
    if settings.iteration == 0:
        return Policy(ground.start, None)
    instructions = _instructions(cell, ground)
    evaluations = {"evaluations": _evaluations(cell, ground, settings, instructions)} if settings.eft else {}
    first = _tuned(
        cell,
        ground,
        settings,
        {"demonstrations": instructions, **evaluations},
        "iteration 1 policy (self_rewarding)",
    )
    policy = Policy(first, first)
    if settings.iteration > 1:
        method = iterations.LoopMethod(
            first=2,
            start=first,
            seed_pairs=None,
            draws=settings.draws,
            items=_new_prompts(cell, ground, settings),
            labels=lambda round_: _labels(cell, ground, settings, round_),
            training=lambda _: _training(cell, settings),
        )
        policy = iterations.unfold(cell, ground, method)
    return replace(policy, self_judge=_quality(cell, ground, settings, policy.model))


def _training(cell: Cell, settings: SelfRewarding) -> Dpo | SftChosen:
    if settings.learns_from == "pairs":
        return iterations.round_training(cell, settings.beta)
    return SftChosen(**settings.model_dump(include=set(Training.model_fields)), name="sft_chosen")


# M_1 --------------------------------------------------------------------------------------------------------


def _tuned(
    cell: Cell, ground: Ground, settings: SelfRewarding, texts: Mapping[str, Stage], label: str
) -> Stage:
    of_cell = pieces.training_settings(cell)
    training: SftSettings | ConversationSft
    if isinstance(cell.model, WorldModel):
        usual = {name: of_cell[name] for name in ("max_length", "seed")}
        training = SftSettings(training=settings.first_training, **usual)
    else:
        training = ConversationSft(training=settings.first_training, **of_cell)
    return stage("sft", training, {"model": ground.start, **texts}, label)


def _instructions(cell: Cell, ground: Ground) -> Stage:
    if "ift" in ground.of_method:
        return _of_file(ground, "ift", "instructions")
    if not isinstance(cell.data, WorldData):
        return iterations.rankings(ground, "train")
    data = DemonstrationData(
        family=pieces.family(cell),
        writer=cell.data.demonstrations,
        n=cell.data.n_demonstrations,
        seed=cell.seed,
    )
    return stage("data", data, label="demonstrations")


def _of_file(ground: Ground, name: str, label: str) -> Stage:
    """Supervised rows of the user's file that the setting `name` names."""
    limits = iterations.row_limits(ground)
    settings = SupervisedData(max_length=limits.max_length)
    return stage("data", settings, {"file": ground.of_method[name], **limits.inputs}, label)


def _evaluations(cell: Cell, ground: Ground, settings: SelfRewarding, instructions: Stage) -> Stage:
    if "eft" in ground.of_method:
        return _of_file(ground, "eft", "evaluations")
    prompt, n, seed = settings.judge_prompt, settings.n_evaluations, cell.seed
    if isinstance(cell.data, WorldData):
        assert cell.world is not None
        truth = TrueEvaluationData(
            prompt=prompt, gold=cell.world.gold, fraction=cell.data.fraction, n=n, seed=seed
        )
        labelled = ground.preferences.inputs["train"]
        assert isinstance(labelled, Stage)
        samples = {role: labelled.inputs[role] for role in ("items", "completions")}
        written = WrittenData(writer=settings.evaluated, draws=2, seed=seed)
        answers = stage("data", written, {"items": samples["items"]}, "answers of every quality")
        return stage("data", truth, {**samples, "answers": answers}, "evaluations by the truth")
    baseline = _tuned(cell, ground, settings, {"demonstrations": instructions}, "SFT baseline")
    rankings = iterations.rankings(ground, "train")
    ranked = {"items": rankings, "completions": rankings}
    questions, replies = _judgements(cell, settings, baseline, ranked, "labelled pairs")
    kept = KeptEvaluationData(prompt=prompt, n=n, seed=seed, reading=SELF_JUDGE_READING)
    return stage(
        "data",
        kept,
        {**ranked, "questions": questions, "replies": replies},
        "evaluations that agree with the pairs",
    )


# Judging ----------------------------------------------------------------------------------------------------


def _judgements(
    cell: Cell, settings: SelfRewarding, judge: Input, completions: Mapping[str, Stage], label: str
) -> tuple[Stage, Stage]:
    """Returns the stages (questions, replies) about the completions of items."""
    questions = stage(
        "data",
        JudgeQuestionData(prompt=settings.judge_prompt),
        completions,
        f"{label}: questions to the judge",
    )
    decoding = Decoding(
        temperature=settings.judge_temperature, top_p=1.0, max_new_tokens=settings.judge_max_new_tokens
    )
    return questions, _written(cell, judge, questions, decoding, settings.judgements, f"{label}: judgements")


def _written(cell: Cell, model: Input, items: Stage, decoding: Decoding, draws: int, label: str) -> Stage:
    return stage(
        "sample",
        pieces.sample_settings(cell, decoding, draws, cell.seed),
        pieces.read_model(model) | {"items": items},
        label,
    )


def _labels(cell: Cell, ground: Ground, settings: SelfRewarding, round_: iterations.Round) -> Stage:
    match settings.labeller:
        case "self":
            samples = {"items": round_.items, "completions": round_.samples}
            _, replies = _judgements(cell, settings, round_.policy, samples, f"iteration {round_.t}")
            truth = cell.world.gold if cell.world else None
            labels = SelfLabels(prompt=settings.judge_prompt, truth=truth, reading=SELF_JUDGE_READING)
            return stage("label", labels, {**samples, "replies": replies}, round_.label("labels (self)"))
        case "gold":
            return iterations.gold_labels(cell, round_)
        case "reward_model":
            seed = SeedTraining(**settings.model_dump(include=set(SeedTraining.model_fields)))
            return iterations.reward_model_labels(cell, ground, round_, seed=seed)
        case labeller:
            return iterations.plain_labels(cell, round_, labeller)


def _quality(cell: Cell, ground: Ground, settings: SelfRewarding, policy: Input) -> Stage:
    if isinstance(cell.data, WorldData):
        labelled = ground.preferences.inputs["heldout"]
        assert isinstance(labelled, Stage)
        items = labelled.inputs["items"]
        assert isinstance(items, Stage)
        decoding = Decoding(
            temperature=settings.sample_temperature,
            top_p=settings.sample_top_p,
            max_new_tokens=settings.sample_max_new_tokens,
        )
        completions = _written(cell, ground.start, items, decoding, RANKED, "held-out samples to rank")
    else:
        items = completions = iterations.rankings(ground, "heldout")
    ranked = {"items": items, "completions": completions}
    _, replies = _judgements(cell, settings, policy, ranked, "held-out rankings")
    gold = cell.world.gold if cell.world else None
    truth = SelfJudgeSettings(prompt=settings.judge_prompt, truth=gold, reading=SELF_JUDGE_READING)
    return stage("audit", truth, {**ranked, "replies": replies}, "the policy as a judge")


# Prompts ----------------------------------------------------------------------------------------------------


def _new_prompts(cell: Cell, ground: Ground, settings: SelfRewarding) -> Callable[[int], Stage]:
    """Returns the function from iteration (2, 3, ...) to its prompts.

    They come from the user's file, from conversations or from the world's task family, or a model writes them
    after examples: the start model, or a fixed other one (`prompt_writer`).
    """
    if ground.prompts is not None or settings.new_prompts == "family":
        return lambda t: iterations.prompts(cell, ground, settings, t)
    writer: Input = ground.of_method.get("prompt_writer", ground.start)
    by = " by method.prompt_writer" if "prompt_writer" in ground.of_method else ""
    examples = _instructions(cell, ground)
    written: dict[int, Stage] = {}

    def instructed(t: int) -> Stage:
        known = {"rankings": examples} | {f"earlier_{i:02d}": earlier for i, earlier in written.items()}
        n = settings.ranges[t - settings.starts_at].n
        request = PromptRequestData(
            n=REQUESTS * n, n_known=N_KNOWN, n_written=N_WRITTEN, seed=cell.seed * 1000 + t
        )
        requests = stage("data", request, known, f"iteration {t} requests for prompts")
        replies = _written(cell, writer, requests, WRITING, 1, f"iteration {t} prompts as written{by}")
        kept = WrittenPromptData(n=n, similarity=settings.similarity)
        written[t] = stage("data", kept, {**known, "completions": replies}, f"iteration {t} prompts")
        return written[t]

    return instructed
