"""A scripted shopper that knows the goal: demonstrations from which a small policy is cloned, and the
tokenizer of such a policy.

It plays training goals with the recipe's prompt. Some of its steps go astray and some of its lines are no
action, as a policy's own will, and it goes on from there: what is cloned is always the step that leads on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from paw_hpc.envs.base import Demonstration, Lessons, Task, Taught
from paw_hpc.envs.webshop import agents
from paw_hpc.envs.webshop.benchmark import Webshop
from paw_hpc.envs.webshop.game import Game
from paw_hpc.recipe import Recipe
from paw_hpc.system.seeding import derive_seed, generator

VOCABULARY = 1500
SPECIAL = ("<pad>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT_GOALS = 300
_BUY = "click[buy now]"
_FUMBLES = ("open it", "choose", "buy red", "search", "next page", "choose this one", "open 12")


def lessons(recipe: Recipe, console: object = None) -> Lessons:
    """What the shopper teaches with the recipe's prompt (section `warm_start`)."""
    return Lessons(demonstrations(recipe), lambda folder: save_tokenizer(recipe, folder))


def demonstrations(recipe: Recipe) -> Iterator[Demonstration]:
    """The teacher's play of `warm_start.games` training goals, `len(warm_start.hints)` episodes each.

    `warm_start.detour` is the share of steps that go astray (any available action), `warm_start.fumble` that
    of lines that are no action, `warm_start.habit` that of steps on a product's page at which buying at once
    is what is cloned; it then goes on as it should.
    """
    benchmark = Webshop(recipe.env)
    tasks = benchmark.tasks("train")
    order = generator(recipe.seed, "teacher-order").permutation(len(tasks))[: recipe.warm_start.games]
    for number in order:
        for repeat in range(len(recipe.warm_start.hints)):
            yield from _play(benchmark, tasks[int(number)], repeat, recipe)


def save_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Byte-level BPE (nothing is ever unknown) over pages and prompts of training goals."""
    build_tokenizer(_texts(recipe)).save_pretrained(folder)


def build_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def next_action(game: Game) -> str | None:
    """What leads on from here to a purchase of full score; None where the search lists no product for it."""
    words = agents.search_words(game.goal, brief=True)
    if game.shown == "":
        return f"search[{words}]"
    if game.shown == "search_results":
        return _towards_product(game)
    number = game.catalogue.products.find(game.asin)
    if game.shown == "item_sub_page" or not agents.fulfils(game, number):
        return "click[< prev]"
    product = game.catalogue.products[number]
    for value in agents.best_choice(product, game.goal):
        if value not in game.chosen.values():
            return f"click[{value}]"
    return _BUY


def _towards_product(game: Game) -> str | None:
    found, page = game.results
    place = next((place for place, number in enumerate(found) if agents.fulfils(game, number)), None)
    if place is None:
        return None
    wanted = place // agents.PAGE_SIZE + 1
    if page == wanted:
        return f"click[{game.catalogue.products[found[place]].asin.lower()}]"
    return "click[next >]" if page < wanted else "click[< prev]"


def _play(benchmark: Webshop, task: Task, repeat: int, recipe: Recipe) -> Iterator[Demonstration]:
    section, rng = recipe.warm_start, generator(recipe.seed, f"teacher/{task.task_id}", repeat)
    session = benchmark.session(task, derive_seed(recipe.seed, "teacher", repeat))
    view = benchmark.view(task, 0)
    taught, state = Taught(view, recipe.env.conversation), session.state()
    view.start(state)
    while not state.done:
        action = next_action(session.game)
        if action is None:
            return
        hasty = _BUY in state.admissible and rng.random() < section.habit
        yield taught.demonstration(view.answer(_BUY if hasty else action))
        if rng.random() < section.fumble:
            action = _FUMBLES[int(rng.integers(len(_FUMBLES)))]
        elif rng.random() < section.detour:
            astray = [click for click in state.admissible if click.startswith("click[") and click != _BUY]
            action = astray[int(rng.integers(len(astray)))] if astray else action
        state = session.act(action)
        taught.observe(view.answer(action), action, state)


def _texts(recipe: Recipe) -> Iterator[str]:
    benchmark = Webshop(recipe.env)
    tasks = benchmark.tasks("train")
    for number in generator(recipe.seed, "tokenizer-texts").permutation(len(tasks))[:_TEXT_GOALS]:
        session, view = benchmark.session(tasks[int(number)]), benchmark.view(tasks[int(number)], 0)
        state = session.state()
        view.start(state)
        while not state.done and (action := next_action(session.game)) is not None:
            yield view.messages()[0]["content"]
            yield view.answer(action)
            state = session.act(action)
            view.observe(action, state)
            yield state.observation
