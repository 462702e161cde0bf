"""The project's English: words that the field does not use fail in docs, docstrings, comments, help and messages."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ('.', 'planning', 'labeling', 'observing', 'figures', 'environments', 'support', 'scripts', 'docs', 'tests')
PAGES = sorted(path for pattern in ('*.md', 'docs/*.md', 'datasets/*.md', 'results/*.md') for path in ROOT.glob(pattern)
               if not path.name.endswith('.ko.md'))
MODULES = sorted(path for folder in FOLDERS
                 for path in (ROOT / folder).glob('**/*.py' if folder == 'scripts' else '*.py')
                 if path != Path(__file__).resolve())

# generic persons, verbs of telling, and the private names of an earlier vocabulary
FORBIDDEN = re.compile(
    r'\b(who|whom|whoever|nobody|somebody|he|his|him'
    r'|tell|tells|told|telling|foretell|foretells|foretold|foretelling|untold'
    r'|rehears\w+|things?map|senses|beliefs?)\b', re.IGNORECASE)
ALLOWED = {
    'He et al.',  # a name
}


def words_of(text):
    """Return the forbidden words of a text."""
    for phrase in ALLOWED:
        text = text.replace(phrase, '')
    return [match[0] for match in FORBIDDEN.finditer(text)]


def texts_of(source):
    """Yield (line, text) of all strings (docstrings, help, messages) and comments of a Python source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_forbidden_words_are_found():
    assert words_of('Whoever is told, He et al. say, foretells.') == ['Whoever', 'told', 'foretells']
    source = '"""Who."""\nx = f(\'nobody\')  # he\ndef whoever(): pass\n'
    assert sorted(words_of(text)[0] for _, text in texts_of(source)) == ['Who', 'he', 'nobody']


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_use_the_words_of_the_field(path):
    lines = path.read_text(encoding='utf-8').splitlines()
    found = [f'{number}: {words}' for number, line in enumerate(lines, 1) if (words := words_of(line))]
    assert not found, found


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_use_the_words_of_the_field(path):
    texts = texts_of(path.read_text(encoding='utf-8'))
    found = [f'{line}: {words}' for line, text in texts if (words := words_of(text))]
    assert not found, found


def test_function_and_test_names_use_the_words_of_the_field():
    found = []
    for path in MODULES:
        names = [node.name for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
                 if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        found += [f'{path.name}: {name}' for name in names if words_of(name.replace('_', ' '))]
    assert not found, found
