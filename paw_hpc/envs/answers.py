"""How an answer is read. `env.validity` chooses between two rules.

`admissible`, ours: exactly one block outside of the thoughts, tags as they are written in the prompt, and an
action that can be taken now.

`format`, the reference's: well-formed is enough, and what is well-formed is looked for in few words. The text
is lowercased before the action's tags are looked for, the first opening and the first closing tag count
wherever they stand, and nothing is said of what lies between or around them. So a quoted tag inside of the
thought begins the action, and a closing tag before the opening one is an empty action that is valid.

Where the model's chat template has opened the thought at the end of the prompt (`opened`), both rules read
the response as if its opening tag stood before it: all that it takes is the closing one. (The reference wants
both tags in the response: every action of such a model is invalid to it.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_OPEN, _CLOSE = "<action>", "</action>"
OPEN_THOUGHT, CLOSE_THOUGHT = "<think>", "</think>"
_CHINESE = re.compile("[\u4e00-\u9fff]")
"""The block of CJK unified ideographs alone: kana, hangul, Chinese punctuation and the extension blocks
pass."""
_SEARCH_OPEN, _SEARCH_CLOSE = re.compile("<search>", re.IGNORECASE), re.compile("</search>", re.IGNORECASE)
_ANSWER_OPEN, _ANSWER_CLOSE = re.compile("<answer>", re.IGNORECASE), re.compile("</answer>", re.IGNORECASE)


def blocks(text: str, *tags: str) -> Iterator[tuple[str, str]]:
    """(tag, content) of every `<tag>...</tag>`, in their order; whichever opens first holds the others, and a
    tag that is never closed opens nothing.

    In time that grows with the text: a pattern like `<think>.*?</think>` would read all that follows once for
    each `<think>` that is never closed.
    """
    last = {tag: text.rfind(f"</{tag}>") for tag in tags}
    opened: re.Match[str] | None = None
    for found in re.finditer(f"<(/?)({'|'.join(tags)})>", text):
        if opened is None:
            if not found[1] and found.start() < last[found[2]]:
                opened = found
        elif found[1] and found[2] == opened[2]:
            yield found[2], text[opened.end() : found.start()]
            opened = None


def has_chinese(text: str) -> bool:
    """Whether a character of U+4E00 to U+9FFF is in it."""
    return _CHINESE.search(text) is not None


def after_thought(response: str, opened: bool) -> tuple[str, bool]:
    """(what an answer to the compact prompt says, whether outside of a thought). A thought that is not closed
    is taken for what is said."""
    _, closing, said = response.partition(CLOSE_THOUGHT) if opened else ("", CLOSE_THOUGHT, response)
    return (said, True) if closing else (response, False)


def only_action(response: str, opened: bool = False) -> tuple[str | None, bool]:
    """(what the only `<action>` outside of the thoughts holds, or None where there is none or more than one;
    whether there is a closed `<think>`)."""
    thought, actions = False, list[str]()
    # an action quoted in a thought is a part of it
    for tag, content in blocks(OPEN_THOUGHT + response if opened else response, "think", "action"):
        if tag == "think":
            thought = True
        else:
            actions.append(content)
    return (actions[0] if len(actions) == 1 else None), thought


def first_tags(response: str, tail: int, opened: bool = False) -> tuple[str, bool]:
    """(action, valid) by the format rule of ALFWorld and WebShop.

    Args:
        tail: where a tag of the action is missing, the action is this many last characters of the lowercased
            response (ALFWorld 30, WebShop 20).
    """
    lowered = response.lower()
    begin, end = lowered.find(_OPEN), lowered.find(_CLOSE)
    if begin < 0 or end < 0:
        return lowered[-tail:], False
    # in this case alone, and in any order
    thought = (opened or OPEN_THOUGHT in response) and CLOSE_THOUGHT in response
    return lowered[begin + len(_OPEN) : end].strip(), thought and not has_chinese(response)


def search_or_answer(response: str) -> tuple[str, bool]:
    """(canonical action, valid) by the format rule of search QA: the first search, or else the first answer,
    of what stands before the end of the first search (or, where no search is closed, of the first answer);
    valid where one opening tag is in all of the response. Thoughts and scripts do not matter, and an empty
    query or answer is one.
    """
    # where the text is cut, case matters
    closing = next((tag for tag in ("</search>", "</answer>") if tag in response), None)
    read = response if closing is None else response[: response.index(closing) + len(closing)]
    opened = len(_SEARCH_OPEN.findall(response)) + len(_ANSWER_OPEN.findall(response))
    if (query := _first_block(read, _SEARCH_OPEN, _SEARCH_CLOSE)) is not None:
        return f"<search>{query}</search>", opened == 1
    if (answer := _first_block(read, _ANSWER_OPEN, _ANSWER_CLOSE)) is not None:
        return f"<answer>{answer}</answer>", opened == 1
    return "", False


def _first_block(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str | None:
    """What stands between the first opening tag and the first closing one after it. (Where none follows the
    first, none follows a later one.)"""
    begin = opening.search(text)
    end = closing.search(text, begin.end()) if begin else None
    return text[begin.end() : end.start()].strip() if begin and end else None


def is_written(said: str, response: str) -> bool:
    """Validity by format of an answer to the compact prompt, which has no tags: something is said, and
    nothing of the response is in Chinese."""
    return bool(said.strip()) and not has_chinese(response)
