"""A small disk for recorder or spill that can be filled. Without the right to mount, a plain folder."""

import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path


class SmallDisk:
    def __init__(self, folder: Path, megabytes: int = 64) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
        self.small = subprocess.run(command, capture_output=True, check=False).returncode == 0
        """Whether it is mounted: only then can it be filled."""
        self.was_small = self.small

    def fill(self) -> None:
        if not self.small:
            return  # it would fill the machine's own disk
        # the write that finds the disk full ends it
        with (self.folder / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while ballast.write(bytes(1 << 16)):
                pass

    def clear(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)

    def keep(self, where: Path) -> None:
        """Copy its content: the disk goes away with the system."""
        if self.small:
            subprocess.run(["cp", "-r", str(self.folder), str(where)], check=False)

    def close(self) -> None:
        if self.small:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)
            self.small = False


@cache
def may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        disk = SmallDisk(Path(folder), 1)
        disk.close()
        return disk.was_small
