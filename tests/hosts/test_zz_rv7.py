import time
from tests.hosts.test_ssh import *
def test_x(board):
    t0=time.time(); T=[]
    def started(line):
        T.append(("line",time.time()-t0)); global pid; pid=line; timer.start()
    def close():
        T.append(("close",time.time()-t0)); board.close(); T.append(("closed",time.time()-t0))
    timer = threading.Timer(0.1, close)
    with pytest.raises(ConnectError):
        board.run(Command("board", "echo $$; exec sleep 60"), on_line=started)
    T.append(("raised",time.time()-t0)); timer.join(); T.append(("joined",time.time()-t0))
    for _ in range(60):
        try: T.append((round(time.time()-t0,2), Path(f"/proc/{pid}/stat").read_text().split()[2:4]))
        except OSError: break
        time.sleep(0.05)
    print(T)
