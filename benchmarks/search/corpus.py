"""The documentation that ships with Python: docstrings of public standard modules, what each begins with.

The same interpreter gives the same documents in the same order. Modules are listed by hand: importing all of them would
open a browser, draw turtles, or fail on another system.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from types import ModuleType

MODULES = """
    abc argparse array ast asyncio atexit base64 binascii bisect builtins bz2 calendar cmath cmd code codecs collections
    collections.abc colorsys compileall concurrent.futures configparser contextlib contextvars copy csv dataclasses
    datetime dbm decimal difflib dis doctest email.generator email.header email.headerregistry email.message
    email.mime.text email.parser email.policy email.utils enum errno faulthandler filecmp fileinput fnmatch fractions
    ftplib functools gc getopt getpass gettext glob graphlib gzip hashlib heapq hmac html html.parser http http.client
    http.cookiejar http.cookies http.server imaplib importlib importlib.metadata importlib.resources importlib.util
    inspect io ipaddress itertools json keyword linecache locale logging logging.config logging.handlers lzma mailbox
    marshal math mimetypes mmap modulefinder multiprocessing multiprocessing.pool netrc numbers operator optparse os
    os.path pathlib pickle pickletools pkgutil platform plistlib poplib pprint profile pstats py_compile pyclbr
    queue quopri random re reprlib runpy sched secrets select selectors shelve shlex shutil signal smtplib socket
    socketserver sqlite3 ssl stat statistics string struct subprocess symtable sys sysconfig tarfile tempfile textwrap
    threading time timeit token tokenize tomllib trace traceback tracemalloc types typing unicodedata unittest
    unittest.mock urllib.error urllib.parse urllib.request urllib.robotparser uuid venv warnings wave weakref
    wsgiref.handlers wsgiref.simple_server wsgiref.util xml.dom.minidom xml.etree.ElementTree xml.sax xmlrpc.client
    xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
""".split()
LEAST_CHARACTERS = 30
"""Shorter docstrings ("Meta-class.") say nothing that could be asked for."""
MOST_CHARACTERS = 200
"""Of longer ones the beginning is kept: what follows is options and examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    id: str
    """Where it is documented: `json.dump`."""
    module: str
    text: str


def documents() -> list[Document]:
    """In the order of the modules and of their names. No text twice: the first name keeps it."""
    by_text: dict[str, Document] = {}
    for module, name, docstring in _docstrings():
        text = beginning(docstring)
        if len(text) >= LEAST_CHARACTERS:
            by_text.setdefault(text, Document(id=name, module=module, text=text))
    return list(by_text.values())


def beginning(docstring: str) -> str:
    """Its first characters, to the end of a word, with single spaces.

    >>> beginning("One idea,\\n    told briefly.\\n\\nAnother.")
    'One idea, told briefly. Another.'
    """
    text = " ".join(docstring.split())
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS + 1].rpartition(" ")[0]


def _docstrings() -> Iterator[tuple[str, str, str]]:
    """Module, name, docstring."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in MODULES:
            module = importlib.import_module(name)
            members = (_members(f"{name}.{public}", getattr(module, public, None)) for public in _public(module))
            for documented, text in chain(_docstring(name, module), *members):
                yield name, documented, text


def _public(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    # Hooks are there to be replaced, and a test runner does: then another docstring stands there.
    return sorted(name for name in set(names) if not name.endswith("hook"))


def _members(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Of a class or function; data has the docstring of its type, which is documented where the type is."""
    if not inspect.isclass(value) and not inspect.isroutine(value):
        return
    yield from _docstring(name, value)
    if inspect.isclass(value):
        for member in sorted(vars(value)):
            own = inspect.getattr_static(value, member)
            is_documented = inspect.isroutine(own) or isinstance(own, property | staticmethod | classmethod)
            if is_documented and not member.startswith("_"):
                yield from _docstring(f"{name}.{member}", own)


def _docstring(name: str, value: object) -> Iterator[tuple[str, str]]:
    text = getattr(value, "__doc__", None)
    if isinstance(text, str):
        yield name, text
