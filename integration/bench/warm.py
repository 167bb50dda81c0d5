"""Memory that a virtual machine really has, for what is measured on a RAM disk.

A hypervisor may take free memory back and give it again page by page when it is touched, which here costs three times what the
writing does. Whether a peer meets such pages depends on what ran a second before, and whoever writes more meets more. So memory is
touched before, kept in a file, and let go of as fast as the peer that is measured fills the disk: it gets pages that are there.
"""

import os
import threading


RAM_DISK = "/dev/shm"


class Warm(threading.Thread):
    """Keeps the free space of the RAM disk below `directory` as it is, for up to `size` bytes more in use. On another disk it does nothing."""

    STEP, AHEAD = 4 << 20, 64 << 20

    def __init__(self, directory, size):
        super().__init__(daemon=True)
        has_work = os.stat(directory).st_dev == os.stat(RAM_DISK).st_dev
        self.path, self.left, self.over = os.path.join(directory, "warm"), has_work * (size + self.AHEAD), threading.Event()
        self.file = open(self.path, "wb")

    def __enter__(self):
        touched = b"\1" * self.STEP
        while self.file.tell() < self.left:
            self.file.write(touched)
        self.file.flush()
        self.let_go(self.AHEAD)
        self.free = self.free_now()
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()
        self.file.close()
        os.unlink(self.path)

    def free_now(self):
        place = os.fstatvfs(self.file.fileno())
        return place.f_bfree * place.f_frsize

    def let_go(self, size):
        self.left = max(0, self.left - size)
        os.ftruncate(self.file.fileno(), self.left)

    def run(self):
        while self.left and not self.over.wait(0.004):
            if (taken := self.free - self.free_now()) > 0:
                self.let_go(taken)
