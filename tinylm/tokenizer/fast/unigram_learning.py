"""stand-in until the branch learner is merged"""

from tinylm.tokenizer import textbook_unigram as tb


def learn_unigram(words, sizes, counts, num_pieces, *, coverage=0.9995, progress=lambda n: None, **k):
    data = words.tobytes()
    c = {}
    b = 0
    for s, n in zip(sizes.tolist(), counts.tolist()):
        c[data[b : b + s].decode()] = n
        b += s
    sc = tb.train(c, num_pieces, num_seeds=2000)
    it = sorted(sc.items(), key=lambda e: (-e[1], e[0]))
    return [p for p, _ in it], [round(s * 1024) / 1024 for _, s in it]
