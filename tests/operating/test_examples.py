"""Every example is run as a user runs it; notebooks are executed and say what their twins and kept outputs say.

`python -m tests.operating.test_examples` makes the notebooks from the scripts anew; names after it choose some.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from llama_index_bedrock_sessions.cli import demo

pytestmark = pytest.mark.thorough

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = {"quickstart": 0, "agent_memory": 2, "diagnostic_assistant": 3, "shopping_assistant": 2, "moving_in": 0}
"""The pictures in each."""


def run(folder: Path, *command: str) -> str:
    """Run an example in an empty folder and give what it prints."""
    environment = os.environ | {"PYTHONUTF8": "1"}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def kept(name: str) -> nbformat.NotebookNode:
    """Give a notebook as it is in the folder."""
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def make_notebook(script: Path) -> nbformat.NotebookNode:
    """Make a notebook from a script, without outputs; its cell ids are their numbers."""
    notebook = jupytext.read(script)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["source"] = cell["source"].strip()  # a script has two empty lines before a function, a cell has none
    return notebook


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook with the interpreter that runs the tests, in a folder; it imports what stands beside it."""
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    path = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])
    client.execute(env=os.environ | {"PYTHONPATH": path})
    return notebook


def outputs(notebook: nbformat.NotebookNode) -> list[tuple[str, list[list[str]]]]:
    """Give what each code cell prints, and the kinds of what it shows; what it logs is left out."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [
        (
            "".join(output.text for output in cell if output.get("name") == "stdout"),
            [sorted(output.data) for output in cell if output.output_type == "display_data"],
        )
        for cell in cells
    ]


def printed(notebook: nbformat.NotebookNode) -> str:
    """Give all that a notebook prints."""
    return "".join(text for text, _ in outputs(notebook))


def sources(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_every_example_is_tested() -> None:
    """No example stands in the folder that nothing here runs."""
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "agent_memory.py",
        "agent_memory.ipynb",
        "diagnostic_assistant.py",
        "diagnostic_assistant.ipynb",
        "fastapi_app.py",
        "incident.py",
        "moving_in.py",
        "moving_in.ipynb",
        "quickstart.py",
        "quickstart.ipynb",
        "raw_boto3.py",
        "renew_lambda.py",
        "shop.py",
        "shopping_assistant.py",
        "shopping_assistant.ipynb",
    }


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_its_scripts_twin(name: str) -> None:
    """Cell by cell, a notebook holds the text and the code of its script."""
    assert sources(kept(name)) == sources(jupytext.read(EXAMPLES / f"{name}.py"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_keeps_its_outputs(name: str, tmp_path: Path) -> None:
    """Executed now, a notebook says and shows what is kept in it, its pictures among that; no cell fails."""
    there = outputs(kept(name))
    assert outputs(execute(make_notebook(EXAMPLES / f"{name}.py"), tmp_path)) == there
    assert [shown for _, cell in there for shown in cell] == [["image/png", "text/plain"]] * NOTEBOOKS[name]


def test_the_script_prints_what_the_notebook_does(tmp_path: Path) -> None:
    """The quickstart says the same as a script."""
    assert run(tmp_path, str(EXAMPLES / "quickstart.py")) == printed(kept("quickstart"))


def test_boto3_alone_reads_the_demos_text_and_picture(tmp_path: Path) -> None:
    """`raw_boto3.py` prints every text of the demo, and its picture is the demo's, byte for byte."""
    database = tmp_path / "incident.db"
    run(tmp_path, "-m", "llama_index_bedrock_sessions.cli", "demo", "--database", str(database))
    output = run(tmp_path, str(EXAMPLES / "raw_boto3.py"), str(database), "--save", "pictures")
    messages = BedrockSessionsChatStore.local(database).get_messages(demo.INCIDENT)
    texts = [message.content for message in messages if message.content]
    assert len(texts) == 6
    assert [text for text in texts if f"text: {text}\n" not in output] == []
    drawn = database.with_suffix(".png").read_bytes()
    assert (tmp_path / "pictures" / "1.png").read_bytes() == drawn
    assert f"image: png, {len(drawn)} bytes, sha256 {hashlib.sha256(drawn).hexdigest()}" in output
    with Image.open(tmp_path / "pictures" / "1.png") as picture:
        assert picture.size == (960, 540)


def test_raw_boto3_uses_nothing_of_ours_but_a_client() -> None:
    """The only thing `raw_boto3.py` imports from this package is the emulator, and only for its client."""
    text = (EXAMPLES / "raw_boto3.py").read_text("utf-8")
    froms = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = [(node.module, [alias.name for alias in node.names]) for node in froms if "llama_index" in str(node.module)]
    assert ours == [("llama_index_bedrock_sessions.emulator", ["Emulator"])]
    assert text.count("Emulator(") == text.count("Emulator(arguments.database).client()") == 1


@pytest.mark.parametrize("arguments", [(), ("missing.db",)])
def test_raw_boto3_says_what_it_needs(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Without an existing file or a region it says what to name, and creates no file."""
    command = [sys.executable, str(EXAMPLES / "raw_boto3.py"), *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert result.returncode == 2
    assert "name the file of an embedded service, or a --region" in result.stderr
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    for name in sys.argv[1:] or NOTEBOOKS:
        made = execute(make_notebook(EXAMPLES / f"{name}.py"), EXAMPLES)
        made.metadata.pop("language_info", None)  # the version of Python that made it
        for cell in made.cells:
            cell.metadata.pop("execution", None)  # when each cell ran: nothing a reader needs
        nbformat.write(made, EXAMPLES / f"{name}.ipynb")
