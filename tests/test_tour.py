"""docs/tour.ipynb runs from its first cell to its last one, and the repository has it without outputs."""

from pathlib import Path

import nbclient
import nbformat

DOCS = Path(__file__).resolve().parent.parent / 'docs'


def test_the_notebook_runs(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    notebook = nbformat.read(DOCS / 'tour.ipynb', as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert not any(cell.outputs or cell.execution_count for cell in cells), 'clear the outputs first'

    nbclient.NotebookClient(notebook, timeout=120, resources={'metadata': {'path': str(DOCS)}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 5
    text = ''.join(output.get('text', '') for output in outputs)
    assert '100 trajectories, 100,100 states of 29 dimensions' in text and 'success after ' in text
    assert not any(output.get('name') == 'stderr' for output in outputs), text
