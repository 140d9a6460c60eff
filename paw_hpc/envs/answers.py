"""How an answer is read. `env.validity` chooses between two rules.

`admissible`, ours: exactly one block outside of the thoughts, tags as they are written in the prompt, and an action that can be taken now.

`format`, the reference's: well-formed is enough, and what is well-formed is looked for in few words. The text is lowercased before the action's tags
are looked for, the first opening and the first closing tag count wherever they stand, and nothing is said of what lies between or around them. So
a quoted tag inside of the thought begins the action, and a closing tag before the opening one is an empty action that is valid.

Where the model's chat template has opened the thought at the end of the prompt (`opened`), both rules read the response as if its opening tag stood
before it: all that it takes is the closing one. (The reference wants both tags in the response: every action of such a model is invalid to it.)
"""

from __future__ import annotations

import re

_OPEN, _CLOSE = "<action>", "</action>"
OPEN_THOUGHT, CLOSE_THOUGHT = "<think>", "</think>"
_THOUGHT_OR_ACTION = re.compile(r"<think>.*?</think>|<action>(.*?)</action>", re.DOTALL)
"""Whichever opens first holds the other: an action quoted in a thought is a part of the thought."""
_CHINESE = re.compile("[\u4e00-\u9fff]")
"""The block of CJK unified ideographs alone: kana, hangul, Chinese punctuation and the extension blocks pass."""
_SEARCH_OPEN, _ANSWER_OPEN = re.compile("<search>", re.IGNORECASE), re.compile("<answer>", re.IGNORECASE)
_SEARCH_BLOCK = re.compile("<search>(.*?)</search>", re.IGNORECASE | re.DOTALL)
_ANSWER_BLOCK = re.compile("<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)


def has_chinese(text: str) -> bool:
    """Whether a character of U+4E00 to U+9FFF is in it."""
    return _CHINESE.search(text) is not None


def after_thought(response: str, opened: bool) -> tuple[str, bool]:
    """(what an answer to the compact prompt says, whether outside of a thought). A thought that is not closed is taken for what is said."""
    _, closing, said = response.partition(CLOSE_THOUGHT) if opened else ("", CLOSE_THOUGHT, response)
    return (said, True) if closing else (response, False)


def only_action(response: str, opened: bool = False) -> tuple[str | None, bool]:
    """(what the only `<action>` outside of the thoughts holds, or None where there is none or more than one; whether there is a closed `<think>`)."""
    thought, actions = False, list[str]()
    for match in _THOUGHT_OR_ACTION.finditer(OPEN_THOUGHT + response if opened else response):
        if match[1] is None:
            thought = True
        else:
            actions.append(match[1])
    return (actions[0] if len(actions) == 1 else None), thought


def first_tags(response: str, tail: int, opened: bool = False) -> tuple[str, bool]:
    """(action, valid) by the format rule of ALFWorld and WebShop.

    Args:
        tail: where a tag of the action is missing, the action is this many last characters of the lowercased response (ALFWorld 30, WebShop 20).
    """
    lowered = response.lower()
    begin, end = lowered.find(_OPEN), lowered.find(_CLOSE)
    if begin < 0 or end < 0:
        return lowered[-tail:], False
    thought = (opened or OPEN_THOUGHT in response) and CLOSE_THOUGHT in response  # in this case alone, and in any order
    return lowered[begin + len(_OPEN) : end].strip(), thought and not has_chinese(response)


def search_or_answer(response: str) -> tuple[str, bool]:
    """(canonical action, valid) by the format rule of search QA: the first search, or else the first answer, of what stands before the end of the
    first search (or, where no search is closed, of the first answer); valid where one opening tag is in all of the response. Thoughts and scripts do
    not matter, and an empty query or answer is one.
    """
    closing = next((tag for tag in ("</search>", "</answer>") if tag in response), None)  # where the text is cut, case matters
    read = response if closing is None else response[: response.index(closing) + len(closing)]
    opened = len(_SEARCH_OPEN.findall(response)) + len(_ANSWER_OPEN.findall(response))
    if found := _SEARCH_BLOCK.search(read):
        return f"<search>{found[1].strip()}</search>", opened == 1
    if found := _ANSWER_BLOCK.search(read):
        return f"<answer>{found[1].strip()}</answer>", opened == 1
    return "", False


def is_written(said: str, response: str) -> bool:
    """Validity by format of an answer to the compact prompt, which has no tags: something is said, and nothing of the response is in Chinese."""
    return bool(said.strip()) and not has_chinese(response)
