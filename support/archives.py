"""Where images lie: folders of any depth, and archives, never unpacked to the disk: zip, tar
(plain, gzip, bzip2, xz) and the parquet files in which the Hugging Face hub ships images. An
archive's type is read from its first bytes, whatever its name ends in.

`members(path, is_image)` lists (name, bytes, version), where version changes when the content does;
`contents(path, names)` gives (name, content) in the order in which they are stored, in one pass,
with one image in memory; of parquet, with the page that it lies in, at most a row group. A name is
only a name: it is never used as a path.
"""
import bz2
import contextlib
import gzip
import lzma
import os
import re
import tarfile
import zipfile
from pathlib import Path

from support.cli import BadInput

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".parquet")
LARGEST_IMAGE = 2 ** 28               # bytes of an image: more is a bomb
NOT_DATA = (".", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found")  # systems' folders
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
STRANGE = {b"<": "a web page, as a failed download leaves it; download it again",
           b"version https://git-lfs": "a pointer to a file in Git LFS: git lfs pull gets the file",
           b"7z\xbc\xaf": "a 7-Zip archive: unpack it and name the folder",
           b"Rar!": "a RAR archive: unpack it and name the folder",
           b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it and name the folder",
           b"ARROW1": "an Arrow file: save it as parquet"}


def parts(name):
    """Folders and file, also of a name that Windows put into an archive."""
    return re.split(r"[/\\]", name)


def of_a_system(name):
    """Whether it is no data: ._ begins a Mac's notes on a file, and whole folders are as hidden."""
    *folders, last = parts(name)
    return last.startswith("._") or any(
        folder.startswith(NOT_DATA) and folder not in (".", "..") for folder in folders)


def walk(source, seen, prune=None):
    """(folder, names of its files) of the source and of every folder below it, but for names that
    prune(folder, names of its folders, names of its files) takes out of its lists. Links are
    followed, last, but not to the folders around the source; no folder is visited twice."""
    if not source.is_dir():
        yield source.parent, [source.name]
        return
    around, tops = Path(os.path.realpath(source)).parents, [source]
    for top in tops:                                             # to which links are added
        for folder, folders, files in os.walk(top, onerror=fail):
            folder, real = Path(folder), Path(os.path.realpath(folder))
            if real in seen or real in around:
                folders.clear()
                continue
            seen.add(real)
            if prune:
                prune(folder, folders, files)
            folders[:] = sorted(name for name in folders if not name.startswith(NOT_DATA))
            tops += [folder / name for name in folders if (folder / name).is_symlink()]
            yield folder, sorted(files)


def fail(error):
    raise error


def members(path, is_image):
    """(name, bytes, version) of every image; is_image tells them by their names."""
    kind = kind_of(path)
    with unpacking(path, kind.NAME):
        yield from kind.members(path, is_image)


def contents(path, names):
    """(name, content) of the named images. Of two with the same name, the last counts."""
    kind, left = kind_of(path), set(names)
    for name, content in kind.contents(path, frozenset(names)):
        left.discard(name)
        yield name, content
    if left:
        raise BadInput(f"{path}/{min(left)} is gone: the file was changed while it was read")


def is_archive(file):
    """By its ending; one that lies beside the folder into which it was unpacked is not read."""
    ending = next((end for end in ENDINGS if file.name.lower().endswith(end)), None)
    return (ending is not None and not file.name.startswith(".") and file.is_file()
            and not file.with_name(file.name[:-len(ending)]).is_dir())


def kind_of(path):
    """The class below that reads the file, or BadInput, with what the file is instead."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise BadInput(f"{path}: neither a file nor a folder")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file or folder") from None
    if head.startswith(b"PAR1"):
        return Parquet
    if head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")) or zipfile.is_zipfile(path):
        return Zip
    if head.startswith(tuple(OPENERS)) or head[257:262] == b"ustar" or tarfile.is_tarfile(path):
        return Tar
    is_what = next((what for start, what in STRANGE.items() if head.lstrip().startswith(start)),
                   "" if head else "empty")
    raise BadInput(f"{path}: neither an image nor a zip, tar or parquet file"
                   + (f"; it is {is_what}" if is_what else ""))


@contextlib.contextmanager
def unpacking(place, what):
    """A block that makes sense of a stranger's file, which fails in as many ways as there are
    fields to damage."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"{place}: the {what} is damaged, incomplete or of a sort that is not read "
                       f"({told}); download it again, or unpack it and name the folder") from None


def bounded(place, size):
    if size > LARGEST_IMAGE:
        raise BadInput(f"{place}: {size:,} bytes are no image")


class Zip:
    NAME = "zip"

    @staticmethod
    def members(path, is_image):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if is_image(info.filename):
                    yield info.filename, info.file_size, info.CRC

    @staticmethod
    def contents(path, names):
        with unpacking(path, "zip"):
            archive = zipfile.ZipFile(path)
        with archive:
            there = (archive.NameToInfo[name] for name in names if name in archive.NameToInfo)
            for info in sorted(there, key=lambda info: info.header_offset):
                place = f"{path}/{info.filename}"
                bounded(place, info.file_size)
                with unpacking(place, "zip"):
                    content = archive.read(info)
                yield info.filename, content


class Tar:
    """Links in it are skipped: they add no image."""
    NAME = "tar"

    @staticmethod
    def members(path, is_image):
        version = os.stat(path).st_mtime_ns
        for _, info in Tar.walk(path):
            if is_image(info.name):
                yield info.name, info.size, version

    @staticmethod
    def contents(path, names):
        for archive, info in Tar.walk(path):
            if info.name in names:
                place = f"{path}/{info.name}"
                bounded(place, info.size)
                with unpacking(place, "tar"):
                    content = archive.extractfile(info).read()
                yield info.name, content

    @staticmethod
    def walk(path):
        """(archive, file in it), from the beginning to the mark at its end; tarfile alone takes a
        damaged header for the end."""
        with open(path, "rb") as file:
            head = file.read(8)
        opener = next((opener for start, opener in OPENERS.items() if head.startswith(start)), open)
        with unpacking(path, "tar"):
            with opener(path, "rb") as file, tarfile.open(fileobj=Bounded(file), mode="r:") as tar:
                while info := tar.next():
                    if info.isfile():
                        yield tar, info
                    tar.members.clear()                  # of which it would keep every one
                file.seek(tar.offset)
                if file.read(512) != bytes(512):
                    raise tarfile.ReadError(f"no header and no end at byte {tar.offset:,}")
                while file.read(2 ** 20):                # to the checksum
                    pass


class Bounded:
    """A file of which nobody reads more at a time than an image may have, as headers ask for."""
    def __init__(self, file):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size):
        if size > 2 * LARGEST_IMAGE:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


class Parquet:
    """A row an image, its bytes in a column, alone or beside its path. The path's last part is the
    name; a row without one, or with another row's, is called by its number."""
    NAME = "parquet file"
    PLAIN = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")      # bytes without a path

    @staticmethod
    def members(path, is_image):
        status = os.stat(path)
        for name in Parquet.names(path):
            yield name, status.st_size, status.st_mtime_ns

    @staticmethod
    def contents(path, names):
        rows = enumerate(Parquet.names(path))
        left = {row: name for row, name in rows if name in names}
        for row, content in enumerate(Parquet.column(path, "bytes", 4)):
            if row in left:
                name = left.pop(row)
                if content is None:
                    raise BadInput(f"{path}/{name}: no image there, at most its path")
                bounded(f"{path}/{name}", len(content))
                yield name, content
            if not left:
                return

    @staticmethod
    def names(path):
        taken = set()
        for row, name in enumerate(Parquet.column(path, "path", 4096)):
            name = parts(name or "")[-1]
            if not name or name in taken:
                name = f"row-{row:07}"
            taken.add(name)
            yield name

    @staticmethod
    def column(path, field, rows):
        """The bytes or the paths in the column of images, so many rows in memory; none if there is
        no such column."""
        try:
            import pyarrow.parquet
            from pyarrow import types
        except ImportError:
            raise BadInput(f"{path}: parquet files need pyarrow: pip install pyarrow") from None

        with unpacking(path, "parquet file"), pyarrow.parquet.ParquetFile(
                path, buffer_size=2 ** 16) as file:
            leaves = Parquet.leaves(file.schema_arrow, types)
            if "bytes" not in leaves:
                return
            if field not in leaves:
                yield from [None] * file.metadata.num_rows
                return
            Parquet.check(path, file.metadata, leaves[field])
            for batch in file.iter_batches(rows, columns=[leaves[field]]):
                column = batch.column(0)
                for value in column.flatten()[0] if types.is_struct(column.type) else column:
                    yield value.as_py()

    @staticmethod
    def leaves(schema, types):
        """{"bytes": dotted name, "path": dotted name} of the column of images: the one called
        image, or the first; {} if there is none."""
        def is_bytes(type):
            return types.is_binary(type) or types.is_large_binary(type)

        for column in sorted(schema, key=lambda column: column.name != "image"):
            if types.is_struct(column.type):
                fields = {field.name: field.type for field in column.type}
                if "bytes" in fields and is_bytes(fields["bytes"]):
                    return {field: f"{column.name}.{field}" for field in ("bytes", "path")
                            if field in fields}
            elif is_bytes(column.type) and column.name in Parquet.PLAIN:
                return {"bytes": column.name}
        return {}

    @staticmethod
    def check(path, metadata, leaf):
        """Images do not shrink: a column that claims to is a bomb."""
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for chunk in map(group.column, range(group.num_columns)):
                size, stored = chunk.total_uncompressed_size, chunk.total_compressed_size
                if chunk.path_in_schema == leaf and size > LARGEST_IMAGE + 100 * stored:
                    raise BadInput(f"{path}: {size:,} bytes are no images")
