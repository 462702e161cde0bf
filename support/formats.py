"""Recognize the format of a file by its content, to convert it or to name it in a message."""

import zipfile
from pathlib import Path

NPZ = 'an npz file'
NPY = 'a single array (npy)'
HDF5 = 'an HDF5 file'
PARQUET = 'a parquet file'
ARROW = 'an Arrow file'
TEXT = 'a table of text'
CONVERTIBLE = HDF5, PARQUET, ARROW, TEXT, NPY  # by scripts/convert_data.py
CHECKPOINT = 'a PyTorch checkpoint'
SIGNATURES = (  # first bytes -> format
    (b'\x89HDF\r\n\x1a\n', HDF5),
    (b'MATLAB ', 'a MATLAB file'),
    (b'PAR1', PARQUET),
    (b'ARROW1', ARROW),
    (b'\x93NUMPY', NPY),
    (b'version https://git-lfs', 'a Git LFS pointer, not the file itself (`git lfs pull` fetches it)'),
    (b'\x1f\x8b', 'a gzip archive'),
    (b'SQLite format 3', 'an SQLite database'),
    (b'#ROSBAG', 'a ROS bag'),
    (b'\x89MCAP', 'an MCAP recording'),
    (b'\x89PNG', 'a picture'),
    (b'\xff\xd8\xff', 'a picture'),
    (b'GIF8', 'a picture'),
    *((bytes([0x80, protocol]), 'a pickle') for protocol in range(2, 6)),
    (b'<', 'a web page'),
    (b'{', 'a JSON file'),
    (b'[', 'a JSON file'),
)
SEPARATORS = ',;\t'  # between the values of a table of text


def recognize(path):
    """Return the format of a file in words, such as 'an HDF5 file'; None if it is not known.

    Raises:
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return 'a folder'
    with open(path, 'rb') as file:
        head = file.read(512)
    if not head:
        return 'an empty file'

    if head[:2] == b'PK':
        return _recognize_zip(path)
    for signature, name in SIGNATURES:
        if head.lstrip().startswith(signature):
            return name
    return TEXT if _is_table(head) else None


def _recognize_zip(path):
    """Return the format of a zip archive; None if its directory is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return None

    if any(name.endswith('/data.pkl') for name in names):
        return CHECKPOINT
    return NPZ if any(name.endswith('.npy') for name in names) else 'a zip archive without arrays'


def _is_table(head):
    """Return whether the first bytes of a file are lines of text with separated values."""
    try:
        line = head.decode('utf-8-sig', errors='strict' if len(head) < 512 else 'ignore').splitlines()[0]
    except (UnicodeDecodeError, IndexError):
        return False
    return line.replace('\t', ' ').isprintable() and any(separator in line for separator in SEPARATORS)
