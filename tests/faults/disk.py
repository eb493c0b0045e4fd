"""A small disk of its own for the recorder, that can be filled. Needs the right to mount; without it, an ordinary folder."""

import os
import subprocess
from pathlib import Path


class SmallDisk:
    def __init__(self, folder: Path, megabytes: int = 64) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
        self.small = subprocess.run(command, capture_output=True, check=False).returncode == 0
        """Whether it is one: only then can it be filled."""

    def fill(self) -> None:
        space = os.statvfs(self.folder)
        (self.folder / "ballast").write_bytes(bytes(space.f_bavail * space.f_frsize))

    def clear(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self, keep: Path | None = None) -> None:
        """Unmounted; what it held is copied to `keep`."""
        if self.small:
            if keep is not None:
                subprocess.run(["cp", "-r", str(self.folder), str(keep)], check=False)
            subprocess.run(["umount", "-l", str(self.folder)], check=False)
            self.small = False
