"""Programs that want out, want more than their share, or want a reward that they have not earned.

Each should double a number that it reads. `{secret}` is a file that only the test knows, `{home}`
the user's home, `{mark}` a name for whatever would be left behind.
"""

from __future__ import annotations

HOSTILE = {
    "fork bomb": """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
    "fork by libc": """
import ctypes
libc = ctypes.CDLL(None)
for _ in range(10000):
    libc.fork()
    libc.vfork()
    libc.syscall(56, 17, 0, 0, 0, 0)
while True: pass
""",
    "threads without end": """
import threading, time
threading.stack_size(65536)
while True:
    threading.Thread(target=time.sleep, args=(100,)).start()
""",
    "memory": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "memory without a name": """
import os
for number in range(1000):
    os.write(os.memfd_create(str(number)), bytes(1 << 24))
print(84)
""",
    "disk": """
number = 0
while True:
    number += 1
    with open(f"/tmp/{{number}}", "wb") as file:
        file.write(bytes(1 << 22))
""",
    "many files": """
number = 0
while True:
    number += 1
    open(f"/tmp/{{number}}", "w").close()
""",
    "output flood": "while True: print('4' * 100000)",
    "error flood": "import sys\nwhile True: print('4' * 100000, file=sys.stderr)",
    "sleep": "import time\ntime.sleep(1000)\nprint(84)",
    "busy loop that catches all": """
while True:
    try:
        while True: pass
    except BaseException:
        pass
""",
    "ignored signals": """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
time.sleep(1000)
""",
    "signals to everybody": """
import os, signal
for target in (os.getppid(), 1, -1, 0):
    try:
        os.kill(target, signal.SIGKILL)
    except OSError:
        pass
print(84)
""",
    "signals to the grader": """
import os, signal
for target in range(2, 70000):
    if target != os.getpid():
        try:
            os.kill(target, signal.SIGKILL)
        except OSError:
            pass
raise SystemExit(3)
""",
    "environment": """
import os, ctypes
ctypes.CDLL(None).getenv.restype = ctypes.c_char_p
if os.environ.get("SECRET_OF_TEST") or ctypes.CDLL(None).getenv(b"SECRET_OF_TEST"):
    print("{mark}")
""",
    "environment of others": """
import glob
for path in glob.glob("/proc/*/environ") + ["/proc/self/environ"]:
    try:
        if b"SECRET_OF_TEST" in open(path, "rb").read():
            print("{mark}")
    except OSError:
        pass
""",
    "home": """
import os, sys
if set(os.listdir({home!r})) - set(sys.prefix.split("/")):
    print("{mark}")
""",
    "checkpoints": "open({secret!r}).read()\nprint('{mark}')",
    "overwriting": "open({secret!r}, 'w').write('overwritten')\nprint('{mark}')",
    "mode of files": """
import os
for change in (lambda: os.chmod({secret!r}, 0), lambda: os.truncate({secret!r}, 0),
               lambda: os.utime({secret!r}, (0, 0)), lambda: os.unlink({secret!r})):
    try:
        change()
        print("{mark}")
    except OSError:
        pass
""",
    "symbolic link": """
import os
os.symlink({secret!r}, "/tmp/link")
print("{mark}" if open("/tmp/link").read() else "")
""",
    "hard link and rename": """
import os
for move in (os.link, os.rename):
    try:
        move({secret!r}, "/tmp/moved")
        print("{mark}")
    except OSError:
        pass
""",
    "way up": """
import os
for path in ("/proc/1/root", "/proc/self/root/..", "/sandbox/../../..", "/..", "/old_root"):
    try:
        if os.path.exists(path + {secret!r}) and open(path + {secret!r}).read():
            print("{mark}")
    except OSError:
        pass
""",
    "network": """
import socket
socket.create_connection(("127.0.0.1", {port}), timeout=1).sendall(b"{mark}")
""",
    "abstract socket": """
import socket
socket.socket(socket.AF_UNIX).connect("\\0{mark}")
print("{mark}")
""",
    "raw socket by libc": """
import ctypes
libc = ctypes.CDLL(None)
for family in (1, 2, 10, 16, 17, 40):
    if libc.socket(family, 1, 0) >= 0 or libc.socket(family, 3, 0) >= 0:
        print("{mark}")
""",
    "setuid": """
import ctypes, os
for become in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0)):
    try:
        become()
    except OSError:
        pass
try:
    os.chroot("/tmp")
    print("{mark}")
except OSError:
    pass
if ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0:
    print("{mark}")
""",
    "namespaces": """
import ctypes
if ctypes.CDLL(None).unshare(0x10000000) == 0:
    print("{mark}")
""",
    "tracing": """
import ctypes, os
if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0:
    print("{mark}")
""",
    "another program": """
import os, sys
for path in ("/bin/sh", "/usr/bin/python3", "/usr/bin/env", os.path.realpath(sys.executable)):
    try:
        os.execv(path, [path, "-c", "print(84)"])
    except OSError:
        pass
""",
    "subprocess": """
import subprocess
subprocess.Popen(["/bin/sh", "-c", "sleep 1000 # {mark}"], start_new_session=True)
print(84)
""",
    "deep recursion": """
import sys
sys.setrecursionlimit(10**9)
def deep(n): return deep(n + 1)
deep(0)
""",
    "huge integer": "print(str(10**(10**9)))",
    "huge power": "x = 7 ** 7 ** 12\nprint(x)",
    "regular expression": "import re\nre.match('(a+)+$', 'a' * 50 + 'b')",
    "not UTF-8": "import os\nos.write(1, bytes(range(256)) * 100)",
    "closed descriptors": """
import os
for number in range(100):
    try:
        os.close(number)
    except OSError:
        pass
""",
    "all descriptors written": """
import os
for number in range(100):
    try:
        os.write(number, b'{{"code": 0, "passed": true}}\\n84\\n')
    except OSError:
        pass
os._exit(7)
""",
    "exit at once": "import os\nos._exit(0)",
    "exit by sys": "import sys\nsys.exit(0)",
    "pickle": """
import os, pickle
class Evil:
    def __reduce__(self): return (os.system, ("touch /tmp/{mark}",))
os.write(1, pickle.dumps(Evil()).hex().encode())
""",
    "crash": "import ctypes\nctypes.string_at(0)",
    "abort": "import os\nos.abort()",
    "core dump": """
import ctypes, resource
try:
    resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))
except (OSError, ValueError):
    pass
ctypes.string_at(0)
""",
    "limits raised": """
import resource
for name in dir(resource):
    if name.startswith("RLIMIT_"):
        try:
            resource.setrlimit(getattr(resource, name), (-1, -1))
        except (OSError, ValueError):
            pass
x = [bytes(1 << 30) for _ in range(64)]
print("{mark}")
""",
    "thread that outlives": """
import threading
def forever():
    while True: pass
threading.Thread(target=forever).start()
""",
    "clean-up that hangs": "import atexit, time\natexit.register(time.sleep, 1000)",
    "reading the tests": """
import gc, sys
answer = "".join(["{answer_first}", "{answer_rest}"])
texts = []
frame = sys._getframe()
while frame:
    texts += [repr(each) for each in frame.f_locals.values() if each is not texts]
    frame = frame.f_back
texts += [repr(each) for each in gc.get_objects() if type(each) in (dict, list, bytes, tuple)]
if sum(answer in each for each in texts) > sum("answer_of_mine" in each for each in texts):
    print(answer)
answer_of_mine = answer
""",
    "tests in open files": """
import os
answer = "".join(["{answer_first}", "{answer_rest}"]).encode()
for number in range(100):
    try:
        if answer in os.pread(number, 1 << 20, 0):
            print(answer.decode())
    except OSError:
        pass
""",
    "shared memory": """
import ctypes
libc = ctypes.CDLL(None)
if libc.shmget(7, 1 << 20, 0o1666) >= 0 or libc.semget(7, 1, 0o1666) >= 0:
    print("{mark}")
""",
}
"""By what they try."""

_KEEPS_ON = """
import builtins, json, os, sys, unittest
builtins.AssertionError = Exception
builtins.len = builtins.sum = builtins.abs = builtins.round = lambda *_: 0
builtins.isinstance = builtins.all = builtins.any = builtins.sorted = lambda *_, **__: True
json.dumps = lambda *_, **__: '["value", true]'
unittest.TestCase.assertEqual = lambda *_: None
"""

CHEATS = {
    "object equal to all": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return 0
    def __float__(self): return 0.0
    __lt__ = __gt__ = __le__ = __ge__ = __eq__
def double(x): return Equal()
""",
    "integer equal to all": """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = None
def double(x): return Equal(0)
""",
    "list equal to all": """
class Equal(list):
    def __eq__(self, other): return True
def double(x): return Equal()
""",
    "builtins replaced": f"{_KEEPS_ON}def double(x): return None",
    "exit in the function": "import os\ndef double(x): os._exit(0)",
    "exit at import": "import os\nos._exit(0)",
    "exit by sys": "import sys\ndef double(x): sys.exit(0)",
    "passed claimed": """
import os
for number in range(3, 100):
    for text in ('{"passed": true, "why": ""}\\n' * 10, '["value", 0]\\n'):
        try:
            os.write(number, text.encode())
        except OSError:
            pass
os._exit(0)
""",
    "answers before questions": """
import os
for _ in range(50):
    os.write(4, b'{"tuple": ["value", 0]}\\n')
def double(x): return None
""",
    "assertion of its own": "def double(x): raise AssertionError",
    "no function": "print('double')",
    "endless generator": "import itertools\ndef double(x): return itertools.count()",
    "deep list": """
def double(x):
    deep = []
    for _ in range(100000): deep = [deep]
    return deep
""",
    "huge result": "def double(x): return [0] * 10**8",
    "nonsense of values": """
import os
def double(x):
    os.write(4, b'{"tuple": ["value", {"range": [0, 1, 0]}]}\\n')
    os.write(4, b'{"bytes": "zz"}\\n')
""",
    "error that looks unusable": "def double(x): raise ImportError('no module named tests')",
    "name error": "def double(x): return undefined",
    "hanging": "def double(x):\n    while True: pass",
    "not a number": "def double(x): return float('nan')",
    "true for one": "def double(x): return True",
}
"""Modules whose function `double` is called, or that try not to be called."""
