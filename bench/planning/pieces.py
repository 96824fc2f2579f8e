"""The stages of a cell and their settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from bench.config import (
    HELDOUT,
    Adapter,
    Cell,
    ChosenSft,
    DatasetData,
    Decoding,
    Form,
    GoldJudge,
    JuryJudge,
    LanguageJudge,
    Loading,
    LocalData,
    LocalModel,
    MixtureData,
    MixtureSource,
    ModelJudge,
    MtBenchJudge,
    NoJudge,
    NoModel,
    PublicRows,
    RefinedDpo,
    Serving,
    Sft,
    SftTraining,
    Trained,
    Vllm,
    WorldData,
    WorldModel,
    Writer,
    evaluated,
)
from bench.planning.inputs import Policy, Sources, evaluated_sources
from bench.readers import version
from bench.store.keys import Input, Inputs, Stage
from bench.store.stage_settings import (
    TOKENIZER,
    BaseSettings,
    ChosenData,
    ChosenRows,
    ConversationData,
    ConversationSft,
    CorpusData,
    DatasetRows,
    DemonstrationData,
    Dtype,
    GenerateSettings,
    GoldLabels,
    JudgeItemData,
    LocalPairData,
    LocalPromptData,
    LogpsSettings,
    MixedRows,
    PromptData,
    RewardScoreSettings,
    SampleSettings,
    SftSettings,
    Split,
    TaskFamily,
    TrainSettings,
    WrittenData,
    stage,
)


def family(cell: Cell) -> TaskFamily:
    assert cell.world is not None  # config.Cell sets it for data=world.
    return TaskFamily(categories=cell.world.categories, constraint_counts=cell.world.constraint_counts)


def dtype(cell: Cell) -> Dtype:
    return cell.model.dtype if isinstance(cell.model, LocalModel) else "float32"


def loading(cell: Cell) -> Loading:
    return Loading(
        attention=getattr(cell.model, "attention", "auto"),
        quantized="nf4" if cell.adapter.name == "qlora" else None,
    )


def adapter(cell: Cell) -> Adapter | None:
    return cell.adapter if isinstance(cell.adapter, Adapter) else None


def train_settings(cell: Cell, method: Trained | RefinedDpo) -> TrainSettings:
    return TrainSettings(
        method=method, adapter=adapter(cell), loading=loading(cell), **training_settings(cell)
    )


def training_settings(cell: Cell) -> dict[str, Any]:
    """Settings shared by every training of a cell's model."""
    checkpointing = cell.model.gradient_checkpointing if isinstance(cell.model, LocalModel) else "auto"
    return {
        "max_length": max_length(cell),
        "dtype": dtype(cell),
        "seed": cell.seed,
        "gradient_checkpointing": checkpointing,
    }


def read_model(model: Input) -> Inputs:
    """Inputs of a stage that reads a model: the `model`, and for an adapter also its `base` model."""
    base = model
    while isinstance(base, Stage) and getattr(base.settings, "adapter", None) is not None:
        base = base.inputs["model"]
    return {"model": model} | ({} if base is model else {"base": base})


def max_length(cell: Cell) -> int:
    """Maximum number of tokens of prompt and completion, in training and in log-probs of both models."""
    assert not isinstance(cell.model, NoModel)
    return cell.model.max_length


FILES = (LocalData, DatasetData, MixtureData)


def _fractions(data: WorldData | LocalData | PublicRows) -> dict[str, Any]:
    """Fractions of the labelled train rows that are used."""
    return data.model_dump(include={"fraction", "desirable_fraction", "undesirable_fraction"})


def pair_settings(cell: Cell) -> LocalPairData:
    """Settings that split the rows of a file or public dataset into train and held-out rows."""
    data = cell.data
    assert isinstance(data, FILES)
    if isinstance(data, LocalData):
        return LocalPairData(
            heldout_fraction=data.heldout_fraction,
            seed=cell.seed,
            **_tokenizer_checks(cell, data),
            **_fractions(data),
        )
    rows: dict[str, Any]
    if isinstance(data, MixtureData):
        sources = {
            label: MixedRows(
                rows=_dataset_rows(source, data.n_heldout, None), weight=source.weight, cap=source.cap
            )
            for label, source in data.sources.items()
        }
        rows = {"sources": sources, "mixed_form": data.form}
    else:
        rows = {"dataset": _dataset_rows(data, data.n_heldout, data.form)}
    # Held-out prompts cannot overlap with train rows.
    judges = (one.judge for one in evaluated(cell).values())
    overlap = (
        data.overlap if not all(isinstance(judge, NoJudge | GoldJudge) for judge in judges) else "report"
    )
    of_rows = {**rows, "overlap": overlap, **_tokenizer_checks(cell, data)}
    return LocalPairData(
        heldout_fraction=data.heldout_fraction, seed=cell.seed, **of_rows, **_fractions(data)
    )


def _dataset_rows(
    source: DatasetData | MixtureSource, n_heldout: int | None, form: Form | None
) -> DatasetRows:
    return DatasetRows(
        reading=source.reading,
        version=version(source.reading.reader),
        train_files=source.train_files,
        heldout_files=source.heldout_files,
        n_heldout=n_heldout,
        form=form,
    )


def _tokenizer_checks(cell: Cell, data: LocalData | PublicRows) -> dict[str, Any]:
    """Checks of each row with the model's tokenizer: its length, and whether it can be written."""
    length = cell.model.max_length if isinstance(cell.model, LocalModel) else None
    return {"max_length": length, "unwritable": data.unwritable, "version": 2}


def rows_read(cell: Cell, sources: Sources) -> Inputs:
    """Inputs of the rows: file, tokenizer, and the judge's items if overlapping train rows are dropped."""
    if pair_settings(cell).overlap == "report":
        return _file(cell, sources)
    items = dict.fromkeys(
        items
        for one, of_one in evaluated_sources(cell, sources).values()
        if (items := _benchmark_items(one, of_one)) is not None
    )
    return _file(cell, sources) | {f"items{n or ''}": of_one for n, of_one in enumerate(items)}


def _file(cell: Cell, sources: Sources) -> Inputs:
    """The file or dataset, and the model for its tokenizer and chat template.

    They decide the rows from which the model can learn.
    """
    inputs: Inputs = {f"file/{label}": source for label, source in sources.mixture.items()}
    if sources.data is not None:
        inputs = {"file": sources.data}
    if not inputs:
        raise ValueError(
            f"Cannot plan a cell of data={cell.data.name}: no file or dataset was given (Sources.data)."
        )
    return inputs if sources.model is None else inputs | {TOKENIZER: sources.model}


def _benchmark_items(cell: Cell, sources: Sources) -> Stage | None:
    """Items from the judge's own files; None for a judge that uses held-out prompts."""
    if (
        isinstance(cell.judge, (LanguageJudge, ModelJudge, JuryJudge))
        and sources.judge
        and sources.judge.files
    ):
        return _judge_items(cell, cell.judge, sources)
    return None


def _all_rows(cell: Cell, sources: Sources) -> Stage:
    """All rows of the file. Evaluated prompts come from them, whatever the labelled fraction and the seed."""
    whole = {
        "fraction": 1.0,
        "desirable_fraction": 1.0,
        "undesirable_fraction": 1.0,
        "seed": 0,
        "overlap": "report",
        "max_length": None,
    }
    return stage("data", pair_settings(cell).model_copy(update=whole), _file(cell, sources), "all rows")


def _fine_tuned(cell: Cell, sources: Sources) -> Input | None:
    """The start model: the user's model, after supervised fine-tuning if `sft` is set."""
    if cell.sft is None or cell.sft.training is None or sources.model is None:
        return sources.model
    settings = ConversationSft(training=cell.sft.training, **training_settings(cell))
    rows = (
        {"demonstrations": _chosen_completions(cell, sources)}
        if isinstance(cell.sft, ChosenSft)
        else {"conversations": conversations(cell, sources)}
    )
    return stage("sft", settings, {"model": sources.model, **rows}, "start model")


def _chosen_completions(cell: Cell, sources: Sources) -> Stage:
    """Chosen completions of all train rows; held-out rows are those of the cell's preferences."""
    whole = {"fraction": 1.0, "desirable_fraction": 1.0, "undesirable_fraction": 1.0}
    rows = stage("data", pair_settings(cell).model_copy(update=whole), rows_read(cell, sources), "train rows")
    return stage("data", ChosenRows(), {"preferences": rows}, "chosen completions")


def conversations(cell: Cell, sources: Sources) -> Stage:
    """Conversations of the cell's `sft`, which the start model learns or has learned."""
    if not isinstance(cell.sft, Sft) or sources.conversations is None:
        raise ValueError(
            "Cannot plan a cell with conversations (sft=): none were given (Sources.conversations)."
        )
    of_rows = ConversationData(
        version=version("conversations"),
        files=cell.sft.train_files,
        fraction=cell.sft.fraction,
        seed=cell.seed,
    )
    return stage("data", of_rows, {"file": sources.conversations}, "conversations")


def _world_start(cell: Cell, model: WorldModel) -> Stage:
    """The world's start model, pretrained on its corpus and fine-tuned on demonstrations."""
    assert isinstance(cell.data, WorldData)
    data, training = cell.data, model.pretraining
    corpus = CorpusData(family=family(cell), n=training.steps * training.batch_size, seed=training.seed)
    architecture = model.model_dump(
        include={"hidden_size", "num_layers", "num_heads", "intermediate_size", "max_length"}
    )
    base = stage(
        "sft",
        BaseSettings(**architecture, pretraining=training),
        {"corpus": stage("data", corpus, label="corpus")},
        "base model",
    )

    def tuned(model_before: Stage, writer: Writer, sft: SftTraining, name: str) -> Stage:
        demonstrations = DemonstrationData(
            family=family(cell), writer=writer, n=data.n_demonstrations, seed=cell.seed
        )
        inputs = {
            "model": model_before,
            "demonstrations": stage("data", demonstrations, label=f"{name}demonstrations"),
        }
        return stage(
            "sft",
            SftSettings(training=sft, max_length=model.max_length, seed=cell.seed),
            inputs,
            f"{name}start model",
        )

    if data.earlier:
        sft = model.sft.model_copy(update={"steps": data.earlier.steps})
        base = tuned(base, data.earlier.demonstrations, sft, "earlier ")
    return tuned(base, data.demonstrations, model.sft, "")


def _prompts(
    cell: Cell,
    split: Split,
    n: int,
    *,
    seed: int,
    n_turns: Literal[1, 2] = 1,
    reference: Writer | None = None,
) -> Stage:
    settings = PromptData(
        family=family(cell), split=split, n=n, n_turns=n_turns, reference=reference, seed=seed
    )
    return stage("data", settings, label=f"{split} prompts{', two turns' if n_turns == 2 else ''}")


def _labels(
    cell: Cell, data: WorldData, split: Split, tuned: Input | None, *, n: int = 0, seed: int | None = None
) -> Stage:
    """The annotator's choice between two completions of each prompt of a split.

    The fine-tuned model or the demonstrations' writer writes the completions.
    """
    assert cell.world is not None
    seed = cell.seed if seed is None else seed
    sizes = {"train": data.n_prompts, "heldout": data.n_heldout_prompts}
    prompts = _prompts(cell, split, sizes.get(split, n), seed=seed)
    if data.completions_by == "writer":
        written = WrittenData(writer=data.demonstrations, draws=2, seed=seed)
        samples = stage("data", written, {"items": prompts}, f"{split} completions by the writer")
    else:
        assert tuned is not None
        decoding = Decoding(
            temperature=data.sample_temperature, top_p=1.0, max_new_tokens=data.sample_max_new_tokens
        )
        sampling = sample_settings(cell, decoding, draws=2, seed=seed)
        samples = stage("sample", sampling, {"model": tuned, "items": prompts}, f"{split} samples")
    gold = GoldLabels(gold=cell.world.gold, annotator=data.annotator, seed=seed)
    return stage("label", gold, {"items": prompts, "completions": samples}, f"{split} labels")


def sample_settings(cell: Cell, decoding: Decoding, draws: int, seed: int) -> SampleSettings:
    return SampleSettings(decoding=decoding, draws=draws, seed=seed, **_generation_settings(cell))


def inference_settings(cell: Cell) -> dict[str, Any]:
    """Settings shared by all inference stages of a cell's model: batch size and dtype."""
    return {"batch_size": cell.engine.batch_size, "dtype": dtype(cell)}


def _generation_settings(cell: Cell) -> dict[str, Any]:
    """Settings of a stage that generates text: engine, loading, serving, batch size, dtype."""
    return {
        "engine": cell.engine.name,
        "loading": loading(cell),
        "serving": _serving(cell),
        **inference_settings(cell),
    }


def _serving(cell: Cell) -> Serving | None:
    engine = cell.engine
    return (
        Serving.model_validate(engine.model_dump(include=set(Serving.model_fields)))
        if isinstance(engine, Vllm)
        else None
    )


def preference_logps(
    cell: Cell,
    policy: Policy,
    preferences: Stage,
    *,
    splits: Sequence[str],
    mismatched: bool,
    label: str = "",
) -> Stage:
    settings = LogpsSettings(
        rows="preferences",
        splits=tuple(splits),
        mismatched=mismatched,
        max_length=max_length(cell),
        control=policy.control,
        loading=loading(cell),
        **inference_settings(cell),
    )
    label = label or ("reference log-probs" if mismatched else "held-out log-probs")
    return stage("logps", settings, read_model(policy.model) | {"preferences": preferences}, label)


def _preference_rewards(cell: Cell, reward_model: Input, preferences: Stage) -> Stage:
    settings = RewardScoreSettings(
        splits=("heldout",), max_length=max_length(cell), **inference_settings(cell)
    )
    return stage("logps", settings, {"model": reward_model, "preferences": preferences}, "held-out rewards")


def completion_logps(
    cell: Cell, policy: Policy, completions: Stage, label: str, max_length: int | None = None
) -> Stage:
    by_vllm = isinstance(cell.engine, Vllm) and cell.engine.logps == "vllm"
    settings = LogpsSettings(
        rows="completions",
        splits=(),
        mismatched=False,
        max_length=max_length,
        control=policy.control,
        engine="vllm" if by_vllm else "transformers",
        serving=_serving(cell) if by_vllm else None,
        loading=loading(cell),
        **inference_settings(cell),
    )
    inputs = read_model(policy.model) | {"completions": completions, "items": completions.inputs["items"]}
    return stage("logps", settings, inputs, label)


def text_logps(cell: Cell, model: Input, texts: Stage, label: str) -> Stage:
    """Log-probs of given texts, tokenised as in training: items and completions of one data stage."""
    settings = LogpsSettings(
        rows="completions",
        splits=(),
        mismatched=False,
        max_length=max_length(cell),
        loading=loading(cell),
        **inference_settings(cell),
    )
    return stage("logps", settings, read_model(model) | {"completions": texts, "items": texts}, label)


def generate(
    cell: Cell, policy: Policy, items: Stage, decoding: Decoding, label: str, judged: bool = False
) -> Stage:
    """The stage that samples completions of the items.

    `judged`: the items are the judge's, so its temperatures by category apply.
    """
    settings = GenerateSettings(
        decoding=decoding,
        seed=cell.seed,
        best_of=policy.best_of,
        control=policy.control,
        temperatures=cell.judge.temperatures if judged and isinstance(cell.judge, MtBenchJudge) else {},
        **_generation_settings(cell),
    )
    inputs = (
        read_model(policy.model)
        | {"items": items}
        | ({} if policy.reward_model is None else {"reward_model": policy.reward_model})
    )
    return stage("generate", settings, inputs, label)


def _kl_decoding(cell: Cell) -> Decoding:
    """Decoding of samples for KL: the policy's own distribution, in the data's length."""
    return Decoding(temperature=1.0, top_p=1.0, max_new_tokens=cell.data.kl_max_new_tokens)


def _judge_items(cell: Cell, judge: LanguageJudge | ModelJudge | JuryJudge, sources: Sources) -> Stage:
    """Items of the user's file or the data's held-out prompts, else the world's evaluation prompts against its
    reference writer."""
    if judge.items == HELDOUT:
        return _heldout_items(cell, judge, sources)
    if sources.judge is None or not sources.judge.files:
        assert cell.world is not None and judge.n_items is not None
        return _prompts(
            cell,
            "evaluation",
            judge.n_items,
            seed=cell.world.eval_seed,
            n_turns=judge.turns,
            reference=cell.world.reference,
        )
    n = min(judge.n_items or sources.judge.n_items, sources.judge.n_items)
    of_items = JudgeItemData(form=judge.form_of(sources.judge.files), n=n, n_turns=judge.turns)
    return stage("data", of_items, sources.judge.files, f"{cell.judge.name} items")


def _heldout_items(cell: Cell, judge: LanguageJudge | ModelJudge | JuryJudge, sources: Sources) -> Stage:
    """Held-out prompts of the cell's data, with their chosen answers as baselines."""
    assert judge.n_items is not None
    if isinstance(cell.data, WorldData):
        assert cell.world is not None
        return chosen_items(cell, cell.data, "evaluation", judge.n_items, cell.world.eval_seed)
    settings = LocalPromptData(n=judge.n_items, answers=True)
    return stage(
        "data", settings, {"preferences": _all_rows(cell, sources)}, "held-out prompts and chosen answers"
    )


def chosen_items(cell: Cell, data: WorldData, split: Split, n: int, seed: int) -> Stage:
    """The world's prompts of a split, with the annotator's choice of two writers' completions as baselines."""
    labels = _labels(cell, data, split, None, n=n, seed=seed)
    inputs = {"items": labels.inputs["items"], "labels": labels}
    return stage("data", ChosenData(), inputs, f"{split} prompts and chosen answers")
