"""Each Chinese page says what its English twin says: headings, code, numbers and links are compared."""

from __future__ import annotations

import os
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = sorted(page.name for page in (ROOT / "docs" / "zh-CN").glob("*.md") if page.name != "index.md")
PAIRS = {"README.md": "README.zh-CN.md", **{f"docs/{name}": f"docs/zh-CN/{name}" for name in NAMES}}
TWINS = {"docs/index.md": "docs/zh-CN/index.md", **PAIRS}  # the front pages differ: most pages are English only
ENGLISH = {chinese: english for english, chinese in TWINS.items()}

BLOCK = re.compile(r"^```\S*\n.*?^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`[^`]+`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
NUMBER = re.compile(r"(\d+(?:,\d{3})*(?:\.\d+)?)(?: (thousand|million|k|M)\b| ?([万亿]))?")
UNITS = {"": 1, "k": 1000, "thousand": 1000, "万": 10_000, "M": 1_000_000, "million": 1_000_000, "亿": 100_000_000}


def headings(text):
    """Pairs of level and title, in order."""
    return re.findall(r"^(#+) (.*)$", BLOCK.sub("", text), re.MULTILINE)


def anchors(text):
    """The anchor of each heading, as GitHub and MyST make it."""
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(text)]


def code_of_block(block):
    """A block without comments and blank lines; of a tree of files only the names."""
    lines = block.splitlines()
    if lines[1] == "plsc/":
        return [found[1] for line in lines if (found := re.match(r"( {0,4}[\w./]+(?:, [\w./]+)*)(?:  |$)", line))]
    return [line for line in (re.sub(r"(^|\s+)#.*", "", line) for line in lines) if line]


def numbers(text):
    """How often each number is in the prose, with its unit counted in: 100 thousand is 10 万."""
    prose = LINK.sub("]", SPAN.sub("", BLOCK.sub("", text)))
    prose = re.sub(r"([\d.]+) to ([\d.]+) (thousand|million)", r"\1 \3 to \2 \3", prose)
    return Counter(
        (Decimal(digits.replace(",", "")) * UNITS[english or chinese]).normalize()
        for digits, english, chinese in NUMBER.findall(prose)
    )


def place(path, target, text):
    """Where a link of the page at `path` leads: the English page and the position of the heading there."""
    if target.startswith("http"):
        return target.replace("paddlepaddle.org.cn/en", "paddlepaddle.org.cn")
    file, _, anchor = target.partition("#")
    page = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
    where = ENGLISH.get(page, page)
    if page in ENGLISH.values() and path in ENGLISH:
        assert where in (ENGLISH[path], "docs/index.md"), f"{path} links {page}, which has a Chinese page"
    if not anchor:
        return where
    known = anchors(text if page == path else (ROOT / page).read_text())
    assert anchor in known, f"{path}: {page} has no heading #{anchor}"
    return where, known.index(anchor)


def contents(path, text):
    """What has to be the same in a page and its twin, by the name of it."""
    return {
        "levels of headings": [len(level) for level, _ in headings(text)],
        "code blocks": [code_of_block(block) for block in BLOCK.findall(text)],
        "code in lines": Counter(" ".join(span.split()) for span in SPAN.findall(BLOCK.sub("", text))),
        "numbers": numbers(text),
        "links": Counter(str(place(path, target, text)) for target in LINK.findall(BLOCK.sub("", text))),
    }


def difference(english, chinese, texts=None):
    """What differs between two pages: the name of it with both sides, less what they have in common."""
    texts = texts or [(ROOT / path).read_text() for path in (english, chinese)]
    first, second = (contents(path, text) for path, text in zip((english, chinese), texts, strict=True))
    found = {}
    for name, one in first.items():
        other = second[name]
        if one != other:
            found[name] = (one - other, other - one) if isinstance(one, Counter) else (one, other)
    return found


@pytest.mark.parametrize(("english", "chinese"), PAIRS.items(), ids=str)
def test_a_chinese_page_says_what_the_english_one_says(english, chinese):
    assert difference(english, chinese) == {}


@pytest.mark.parametrize(("english", "chinese"), TWINS.items(), ids=str)
def test_twins_link_to_each_other_below_the_title(english, chinese):
    for page, name, other in ((english, "中文", chinese), (chinese, "English", english)):
        link = os.path.relpath(other, os.path.dirname(page) or ".")
        assert (ROOT / page).read_text().split("\n")[1:4] == ["", f"[{name}]({link})", ""], page


def changed(old, new):
    """The differences of the first run from its twin where `old` of the Chinese page is `new`."""
    texts = [(ROOT / path).read_text() for path in ("docs/first-run.md", "docs/zh-CN/first-run.md")]
    assert old in texts[1]
    texts[1] = texts[1].replace(old, new, 1)
    return set(difference("docs/first-run.md", "docs/zh-CN/first-run.md", texts))


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("## 接下来\n", "", "levels of headings"),
        ("## 训练\n", "### 训练\n", "levels of headings"),
        ("1,000 张", "1,001 张", "numbers"),
        ("100 个字符", "100 万个字符", "numbers"),
        ("train_epochs: 4\n", "train_epochs: 5\n", "code blocks"),
        ("```sh\nplsc train --config run.yaml\n```\n", "", "code blocks"),
        ("`plsc train --resume`", "`--auto`", "code in lines"),
        ("(recipes.md)", "(data.md)", "links"),
        ("(data.md#命令)", "(data.md#速度)", "links"),
    ],
)
def test_a_change_of_one_page_is_found(old, new, name):
    assert name in changed(old, new)


def test_translated_comments_are_no_difference():
    assert changed("# b 的镜像是 d", "# 字符不能翻转") == set()


def test_links_to_missing_headings_and_to_english_twins_are_found():
    with pytest.raises(AssertionError, match="has no heading"):
        changed("(data.md#命令)", "(data.md#commands)")
    with pytest.raises(AssertionError, match="has a Chinese page"):
        changed("(recipes.md)", "(../recipes.md)")


def test_a_file_missing_in_the_tree_of_the_readme_is_found():
    texts = [(ROOT / path).read_text() for path in ("README.md", "README.zh-CN.md")]
    texts[1] = re.sub(r"^  doctor/.*\n", "", texts[1], flags=re.MULTILINE)
    assert set(difference("README.md", "README.zh-CN.md", texts)) == {"code blocks"}


@pytest.mark.parametrize(
    ("english", "chinese"),
    [("100 thousand to 100 million", "10 万到 1 亿"), ("1.2 to 256 million", "120 万到 2.56 亿"), ("93 k", "9.3 万")],
)
def test_units_of_numbers_are_those_of_the_language(english, chinese):
    assert numbers(english) == numbers(chinese)
