"""One point of the grid (`Cell`), and combinations of its sections that are impossible."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from bench.config.adapters import Adapter, NoAdapter
from bench.config.base import AsList, Count, Misfit, Name, Positive, Seed, Settings, Unkeyed, misfit
from bench.config.data import ChosenSft, DatasetData, LocalData, MixtureData, Sft, WorldData
from bench.config.forgetting import Forgetting
from bench.config.judges import HELDOUT, RIVALS, AnyJudge, SuiteJudge, judge_facts
from bench.config.methods import (
    SFT_PROMPTS,
    AnyMethod,
    NoMethod,
    SelfRewarding,
    Spin,
    Written,
    is_loop,
    method_facts,
    prompt_ranges,
)
from bench.config.world import LocalModel, NoModel, World, WorldModel


class Transformers(Settings):
    """Completions by transformers, batched by length. Rows that have ended leave their batch."""

    name: Literal["transformers"]
    batch_size: Count
    """Prompts in a batch of generate(). Padding can change a number, so it is part of a result's identity."""


class Serving(Settings):
    """How vLLM is run; settings that change no number reach no key."""

    python: Annotated[str | None, Unkeyed()]
    """Path of the python of an environment with vLLM, for other versions than training has; null: this one.
    """
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1), Unkeyed()]
    """Share of a GPU's memory that vLLM takes, above 0 to 1; it is given back between stages."""
    tensor_parallel_size: Annotated[Count, Unkeyed()]
    """Number of GPUs that one policy is spread over."""
    max_model_len: Annotated[Count | None, Unkeyed()]
    """Longest prompt plus completion in tokens that vLLM keeps room for; null: the model's limit."""
    arguments: dict[str, Any]
    """Further arguments of vllm.LLM, such as {quantization: fp8}. They are part of a result's identity."""

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Vllm(Serving):
    """Completions by vLLM, in a process of its own."""

    name: Literal["vllm"]
    batch_size: Count
    """Rows in a batch of the work that transformers does: log-probs of training data, and rewards."""
    logps: Literal["transformers", "vllm"]
    """Program that scores the evaluation completions, for KL. vllm is faster, and in bfloat16 up to half a
    nat off on a completion of 200 tokens."""


# One point of the grid -----------------------------------------------------------------------------------------------


class Cell(Settings):
    """One point of the grid: everything here may change a number, and is part of a stage key (names
    excepted)."""

    model: WorldModel | LocalModel | NoModel = Field(discriminator="kind")
    """Start model."""
    method: AnyMethod = Field(discriminator="name")
    """Method that trains the policy."""
    data: WorldData | LocalData | DatasetData | MixtureData = Field(discriminator="kind")
    """Data to learn from."""
    world: World | None
    """The controlled world's tasks and true reward; null with other data."""
    judge: AnyJudge = Field(discriminator="name")
    """Judge of the policy's completions."""
    engine: Transformers | Vllm = Field(discriminator="name")
    """Program that generates the completions."""
    seed: Seed
    """Seed of a replicate, from 0; it redraws the start model's fine-tuning, labels, data order and sampling.
    Base model and evaluation items stay."""
    adapter: NoAdapter | Adapter = Field(default=NoAdapter(), discriminator="name")
    """The part of the model that is trained: all of it, or an adapter."""
    sft: Annotated[Sft | ChosenSft, Field(discriminator="source")] | None = None
    """Fine-tuning that makes the start model from the model's folder; null: the folder is the start model."""
    forgetting: Forgetting | None = None
    """Tasks that measure what a policy has kept of the start model's abilities; null: none."""

    @model_validator(mode="after")
    def _fits_together(self) -> Cell:
        if problems := misfits(self.model_dump()):
            raise misfit(*problems)
        return self


def evaluated(cell: Cell) -> dict[str, Cell]:
    """The cell with one judge for each evaluation, by label; the cell itself under "" where it has no suite."""
    if not isinstance(cell.judge, SuiteJudge):
        return {"": cell}
    return {label: cell.model_copy(update={"judge": judge}) for label, judge in cell.judge.judges.items()}


def misfits(cell: Mapping[str, Any]) -> list[Misfit]:
    """Combinations of a cell's sections that are impossible, each with its key; single sections may have
    faults of their own."""
    judge = cell["judge"]
    if judge_facts(judge) is not SuiteJudge or not isinstance(judge.get("judges"), Mapping):
        return _misfits(cell)
    by_label = {label: _misfits({**cell, "judge": one}) for label, one in judge["judges"].items()}
    placed = (
        (
            re.sub(r"^judge\b", f"judge.judges.{label}", key),
            re.sub(r"\bjudge\.", f"judge.judges.{label}.", text).replace(
                "use judge=none", f"leave {label} out"
            ),
        )
        for label, problems in by_label.items()
        for key, text in problems
    )
    return list(dict.fromkeys(placed))


def _misfits(cell: Mapping[str, Any]) -> list[Misfit]:
    model, method, data, judge = (
        {} if not isinstance(cell[key], Mapping) else cell[key]
        for key in ("model", "method", "data", "judge")
    )
    in_world = data.get("kind") == "world"
    facts = method_facts(method)
    problems: list[Misfit] = []
    if in_world and cell["world"] is None:
        problems.append(
            (
                "world",
                "the controlled world's data need the `world` section of data=world, got null; leave world out",
            )
        )
    if model.get("kind") == "world" and not in_world:
        text = f"model={model.get('name')} knows only the controlled world's words and needs its data, got data={data.get('name')}"
        problems.append(("model", f"{text}; use model=local model.path=DIR"))
    members = judge.get("judges") if isinstance(judge.get("judges"), Mapping) else {}
    gold = {
        label: member
        for label, member in members.items()
        if isinstance(member, Mapping) and member.get("name") == "gold"
    }
    for label, member in gold.items():
        if not in_world or judge.get("items") is not None:
            text = f"the gold judge knows the truth of the controlled world's own prompts only; leave {label} out of this jury"
            problems.append((f"judge.judges.{label}", text))
        elif (member.get("split"), _opponent(member)) != ("evaluation", "reference"):
            text = "in a jury the gold judge must have split=evaluation and opponent=reference, as the other members do"
            problems.append((f"judge.judges.{label}", text))
    if judge.get("name") == "gold" and not in_world:
        text = f"judge=gold knows the truth of the controlled world only and needs its data, got data={data.get('name')}"
        problems.append(("judge", f"{text}; use judge=none"))
    if model.get("kind") == "none" and facts is not Written:
        text = f"method={method.get('name')} needs a model, got model=none"
        problems.append(
            ("model", f"{text}; set model=DIR, or completions=FILE to judge a file of completions")
        )
    if model.get("kind") != "none" and facts is Written:
        problems.append(
            ("model", f"a file of completions needs no model, got model={model.get('name')}; use model=none")
        )
    for key, chosen in (
        ("judge.preference.opponent", _opponent(judge) == "chosen"),
        ("judge.items", judge.get("items") == HELDOUT),
    ):
        if in_world and data.get("completions_by") == "sft" and chosen:
            text = "the chosen answers as the opponent need data.completions_by=writer, which gives all models the same ones, got sft"
            problems.append((key, text))
    problems += _rival_misfits(judge, method, facts)
    thinned = [key for key in ("desirable_fraction", "undesirable_fraction") if data.get(key, 1) != 1]
    if thinned and data.get("form") == "paired":
        text = f"data.{thinned[0]} drops rows of one label, and a pair has both: use unpaired data (data.form=unpaired)"
        problems.append((f"data.{thinned[0]}", text))
    if judge.get("items", "") is None and not in_world:
        text = f"judge={judge.get('name')} takes the controlled world's prompts unless judge.items is set, got data={data.get('name')}"
        problems.append(("judge.items", f"{text}; set judge.items=FILE"))
    if judge.get("items", "") is None and judge.get("n_items", 1) is None:
        problems.append(
            (
                "judge.n_items",
                "judge.n_items must be a number where judge.items is null: the controlled world can make any number of prompts",
            )
        )
    if data.get("form") == "unpaired" and facts.needs_pairs():
        text = f"method={method['name']} learns from pairs, got unpaired rows; use method=kto, csft or offline_ppo, or paired data"
        problems.append(("data.form", text))
    if data.get("fraction") == 0 and facts.reads_labels(method):
        way_out = f"; set {facts.without_labels}" if facts.without_labels else ""
        problems.append(
            (
                "data.fraction",
                f"method={method.get('name')} learns from labelled rows, got data.fraction=0{way_out}",
            )
        )
    if (
        method.get("judging_reference") == "base"
        and model.get("kind") == "local"
        and model.get("base") is None
        and not (isinstance(sft := cell.get("sft"), Mapping) and sft.get("training"))
    ):
        text = "method.judging_reference=base compares a policy with the model its start model was tuned from: set model.base=DIR"
        problems.append(("method.judging_reference", text))
    if method.get("judging_reference") == "base" and model.get("start") == "base":
        text = "method.judging_reference=base needs a start model that was tuned from the base model, got model.start=base"
        problems.append(("method.judging_reference", text))
    if facts is SelfRewarding:
        problems += _self_rewarding_misfits(method, data, in_world)
    elif (
        is_loop(method)
        and not in_world
        and method.get("prompts") is None
        and (facts.demonstrates or data.get("kind") not in ("dataset", "mixture"))
    ):
        what = "demonstrations" if facts.demonstrates else "new prompts"
        text = f"method={method['name']} needs {what} in addition to data={data.get('name')}: set method.prompts=FILE"
        problems.append(("method.prompts", f"{text}, or method.prompts=sft with the conversations of sft="))
    if method.get("prompts") == SFT_PROMPTS and cell.get("sft") is None:
        text = "method.prompts=sft takes the conversations of sft=, got sft=none: add sft=ultrachat_200k"
        problems.append(("method.prompts", f"{text}, with sft.training=null if the model has learned them"))
    if (
        method.get("prompts") == SFT_PROMPTS
        and isinstance(sft := cell.get("sft"), Mapping)
        and sft.get("source") == "chosen"
    ):
        text = "method.prompts=sft takes conversations, got sft=chosen, whose rows are those of data="
        problems.append(("method.prompts", f"{text}: leave method.prompts out, or set a file"))
    if in_world and method.get("prompts") is not None:
        text = f"method.prompts is for data=local, got data={data.get('name')}, which has its own prompts: leave it out"
        problems.append(("method.prompts", text))
    if method.get("labeller") == "gold" and not in_world:
        text = f"labeller=gold knows the truth of the controlled world only, got data={data.get('name')}; use another method.labeller"
        problems.append(("method.labeller", text))
    if method.get("labeller") == "tuned_judge" and in_world:
        text = f"labeller=tuned_judge asks a model about texts of yours, got data={data.get('name')}"
        problems.append(("method.labeller", f"{text}; in the world take method=self_rewarding"))
    if cell.get("sft") is not None and model.get("kind") != "local":
        text = f"sft={_name(cell['sft'])} makes a start model of a base model's folder, got model={model.get('name')}"
        problems.append(("sft", f"{text}; use model=DIR or sft=none"))
    sources = data.get("sources") if isinstance(data.get("sources"), Mapping) else {}
    of_mixture = [(f"data.sources.{label}", source) for label, source in sources.items()]
    for key, section in (("data", data), *of_mixture, ("sft", cell.get("sft")), ("model", model)):
        if (
            isinstance(section, Mapping)
            and "hub" in section
            and section.get("hub") is None
            and section.get("path") is None
        ):
            text = f"{key}.path or {key}.hub must be set: {key}.path to your folder or file, or {key}.hub to its name on the hub"
            problems.append((f"{key}.path", text))
    if facts is Spin and in_world:
        needed, there = prompts_needed(method), data.get("n_demonstrations")
        if needed is not None and isinstance(there, int) and needed.n > there:
            text = f"{needed.what} need {needed.n} demonstrations, got data.n_demonstrations={there}"
            problems.append(("method.n_prompts", text))
    if cell.get("forgetting") is not None and facts.control is not None:
        text = f"method={method['name']} needs a control token after every prompt, and lm_eval does not write one"
        problems.append(("forgetting", f"{text}; leave it out of the sweep or use forgetting=none"))
    adapter = cell.get("adapter")
    if (
        isinstance(adapter, Mapping)
        and adapter.get("name") != "none"
        and method.get("judge_init") == "previous"
    ):
        text = f"method.judge_init=previous trains the whole policy as a judge, got adapter={adapter.get('name')}"
        problems.append(("method.judge_init", f"{text}; take adapter=none or judge_init=start"))
    if isinstance(adapter, Mapping) and adapter.get("name") != "none" and facts.whole is not None:
        text = f"method={method['name']} trains {facts.whole}, got adapter={adapter.get('name')}; use adapter=none"
        problems.append(("adapter", text))
    engine, adapter = (
        cell[key] if isinstance(cell.get(key), Mapping) else {} for key in ("engine", "adapter")
    )
    if engine.get("name") == "vllm" and adapter.get("name") == "qlora":
        text = "engine=vllm loads the base model unquantized, but adapter=qlora was trained on four bits; use engine=transformers"
        problems.append(("engine", text))
    if engine.get("logps") == "vllm" and adapter.get("name") == "lora":
        problems.append(
            (
                "engine.logps",
                "engine.logps=vllm cannot score completions of a LoRA adapter; use engine.logps=transformers",
            )
        )
    if facts.chooses:
        text = f"method={method['name']} chooses among samples, and at temperature 0 they are all the same; set a temperature above 0"
        manners = {"": judge, "preference.": judge.get("preference"), "rating.": judge.get("rating")}
        decodings = {
            place: manner.get("decoding") for place, manner in manners.items() if isinstance(manner, Mapping)
        }
        problems += [
            (f"judge.{place}decoding.temperature", text)
            for place, decoding in decodings.items()
            if isinstance(decoding, Mapping) and decoding.get("temperature") == 0
        ]
    return problems


def _name(section: Any) -> Any:
    return section.get("name") if isinstance(section, Mapping) else section


def _self_rewarding_misfits(
    method: Mapping[str, Any], data: Mapping[str, Any], in_world: bool
) -> list[Misfit]:
    problems: list[Misfit] = []
    named = ("ift", "prompt_writer", "reward_model", *(["eft"] if isinstance(method.get("eft"), str) else []))
    if in_world and (own := [name for name in named if method.get(name) is not None]):
        text = f"method.{own[0]} is for a model and pairs of yours, got data={data.get('name')}"
        problems.append(
            (f"method.{own[0]}", f"{text}, whose tiny models know the world's words: leave it out")
        )
    if in_world and method.get("new_prompts") == "self_instruct":
        text = "self_instruct needs a model that can write prompts, and the world's models cannot: use method.new_prompts=family"
        problems.append(("method.new_prompts", text))
    if not in_world and method.get("new_prompts") == "family" and method.get("prompts") is None:
        text = f"new prompts of the family are the controlled world's, got data={data.get('name')}; use method.new_prompts=self_instruct"
        problems.append(("method.new_prompts", f"{text}, or name a file by method.prompts"))
    return problems


class Needed(NamedTuple):
    """Number of prompts that a loop's iterations need, and these iterations in words."""

    n: int
    what: str


def prompts_needed(method: Mapping[str, Any]) -> Needed | None:
    """Prompts that a loop's section needs; None while its iteration or its numbers are not valid."""
    first, last, n = method_facts(method).starts_at, method.get("iteration"), method.get("n_prompts")
    counts = list(n) if isinstance(n, list | tuple) else n
    numbers = counts if isinstance(counts, list) else [counts]
    if not isinstance(last, int) or not all(type(number) is int and number > 0 for number in numbers):
        return None
    assert counts is not None
    ranges = prompt_ranges(counts, last + 1 - first, same=method.get("prompt_sets") == "same")
    words = " and ".join(map(str, numbers))
    what = f"iterations {first} to {last} of {words} prompts{'' if isinstance(counts, list) else ' each'}"
    return Needed(max((after + number for after, number in ranges), default=0), what)


def _rival_misfits(judge: Mapping[str, Any], method: Mapping[str, Any], facts: type) -> list[Misfit]:
    """Why a policy cannot be the opponent, or held-out prompts the items."""
    key = "judge.preference.opponent" if "preference" in judge else "judge.opponent"
    opponent = _opponent(judge) if "preference" in judge else judge.get("opponent")
    problems: list[Misfit] = []
    if opponent in RIVALS and facts is Written:
        problems.append((key, f"opponent={opponent} needs a model, and a file of completions has none"))
    elif opponent == "previous" and facts is not NoMethod and not is_loop(method):
        text = f"opponent=previous is for methods with iterations, got method={method.get('name')}: use opponent=start"
        problems.append((key, text))
    if opponent in RIVALS and judge.get("mode") == "single":
        problems.append((key, f"opponent={opponent} is for comparisons, got mode=single: use mode=pairwise"))
    if judge.get("items") == HELDOUT and judge_facts(judge).turns != 1:
        text = f"held-out prompts have one turn, and judge={judge.get('name')} asks two: use another judge"
        problems.append(("judge.items", text))
    if judge.get("items") == HELDOUT and judge.get("n_items", 1) is None:
        problems.append(("judge.n_items", "judge.n_items must be a number where judge.items is heldout"))
    return problems


def _opponent(judge: Mapping[str, Any]) -> Any:
    preference = judge.get("preference")
    return preference.get("opponent") if isinstance(preference, Mapping) else None


Kind = Literal["world", "real"]


class Scale(Settings):
    """Values that a scale preset gives to other sections, by interpolation: `${scale.batch_size}`."""

    kind: Kind
    """The models it is for: the controlled world's (world), or pretrained ones (real). A sweep file's parts
    `world:` and `real:` go by it."""
    learning_rate: dict[str, Positive]
    """Peak learning rates by method, from `rates` in conf/method/*.yaml."""
    settings: dict[str, dict[str, Any]]
    """Further settings by method, from `by_scale` in conf/method/*.yaml."""
    num_train_epochs: Positive
    """Passes over the training data; usual 1 to 3."""
    batch_size: Count
    """Rows of one forward and backward pass; times gradient_accumulation_steps, a step has usually 32 to 128
    pairs."""
    gradient_accumulation_steps: Count
    """Forward and backward passes of one optimizer step."""
    optimizer: str
    """Optimizer of every training: adamw_torch, or rmsprop."""
    lr_scheduler_type: str
    """Course of the learning rate after the warm-up: constant, linear or cosine."""
    warmup_ratio: float
    """Share of the steps in which the learning rate rises to its peak; usual 0.1."""
    weight_decay: float
    """Weight decay; usual 0 to 0.1."""
    max_grad_norm: Positive
    """Largest norm of a gradient, longer ones are clipped to it; usual 1, Archangel's 10."""
    generation_batch_size: Count
    """Prompts in a batch when transformers generates."""
    n_prompts: Count
    """Number of labelled prompts in the controlled world's training data."""
    n_new_prompts: Count
    """Number of new prompts in an iteration of a loop."""
    max_new_tokens: Count
    """Longest sample of a loop, or judgement that a policy writes, in tokens."""
    judged_tokens: dict[str, Count]
    """Longest completion that is judged, in tokens, by benchmark: AlpacaEval's models 2,048, FastChat 1,024,
    Arena-Hard 4,096; world: the controlled world's own prompts."""
    judged_temperature: dict[str, float]
    """Sampling temperature of the completions that are judged, by benchmark: AlpacaEval gives none for all
    models (0.7 in most), FastChat 0.7 outside its categories, Arena-Hard 0; world: the controlled world's own
    prompts."""
    judge_prompt: str
    """Form in which a policy of this scale can write judgements (method.judge_prompt)."""
    n_items: Count
    """Number of items to judge."""
    models: Annotated[tuple[Name, ...], AsList]
    """Axis of the sweeps over model sizes (halos, simpo_table)."""
    seeds: Annotated[tuple[Seed, ...], AsList]
    """Axis of the sweeps that compare methods."""
    brings: dict[Literal["model", "data", "sft"], str]
    """Choices of model, data and sft that come with this scale where the command makes none."""
