#!/usr/bin/env python3
# Makes DIR/logs, the same bytes every time: eight access logs of a web server and eight logs in JSON, 64 MiB each (1.07 GB).
# usage: logs.py DIR
import random, os, sys

D = sys.argv[1] + "/logs"
os.makedirs(D, exist_ok=True)
R = random.Random(7)
W = ["".join(R.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(R.randint(3, 10))) for _ in range(4000)]
IP = [f"{R.randint(1,223)}.{R.randint(0,255)}.{R.randint(0,255)}.{R.randint(1,254)}" for _ in range(3000)]
PATH = ["/" + "/".join(R.choices(W, k=R.randint(1, 4))) for _ in range(2000)]
UA = [
    f"Mozilla/5.0 ({o}) AppleWebKit/537.{i} (KHTML, like Gecko) {b}/{n}.0.{n*7}.{i} Safari/537.{i}"
    for o in ("X11; Linux x86_64", "Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7")
    for b in ("Chrome", "Firefox", "Edg")
    for n in range(90, 120, 3)
    for i in (36, 37)
]
MSG = [" ".join(R.choices(W, k=R.randint(4, 14))) for _ in range(400)]
LV = ["DEBUG"] * 3 + ["INFO"] * 12 + ["WARN"] * 2 + ["ERROR"]
SVC = [R.choice(W) + "-service" for _ in range(20)]
t = 1700000000.0
rnd = R.random


def pick(a, p=2.5):
    return a[int(len(a) * rnd() ** p)]


def hx(n):
    return "%0*x" % (n, R.getrandbits(4 * n))


for k in range(8):
    for kind in ("access.log", "app.json"):
        n = 0
        with open(f"{D}/{kind}.{k}", "w", buffering=1 << 20) as f:
            while n < 67108864:
                t += rnd() * 0.02
                s = int(t)
                ts = f"2023-11-{14+(s-1700000000)//86400:02d}T{s//3600%24:02d}:{s//60%60:02d}:{s%60:02d}.{int(t*1000)%1000:03d}Z"
                if kind == "access.log":
                    l = f'{pick(IP)} - - [{ts}] "{"GET" if rnd()<.85 else "POST"} {pick(PATH)}?id={int(rnd()*1e6)} HTTP/1.1" {200 if rnd()<.93 else R.choice((301,304,404,500))} {int(rnd()**3*90000)} "-" "{pick(UA)}" rt={rnd()**3:.3f}\n'
                else:
                    l = f'{{"ts":"{ts}","level":"{R.choice(LV)}","service":"{pick(SVC)}","trace_id":"{hx(32)}","span_id":"{hx(16)}","user_id":{int(rnd()**2*100000)},"msg":"{pick(MSG)}","latency_ms":{rnd()**3*500:.2f},"path":"{pick(PATH)}"}}\n'
                f.write(l)
                n += len(l)
