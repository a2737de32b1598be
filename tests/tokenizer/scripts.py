"""Random texts in many scripts, full of characters that tokenizer libraries treat differently."""

# ruff: noqa: RUF001
from random import Random

SCRIPTS = {
    "latin": "the Cat sat on A mat and RAN quickly unaffable hugs pugs don't we'll",
    "accents": "naïve Café Ünïted ÅNGSTRÖM façade Straße İstanbul ıssız Đặng Nguyễn ñandú œuvre ŁÓDŹ",
    "greek": "Ἐν ἀρχῇ ἦν ὁ λόγος ΟΔΥΣΣΕΎΣ Σίσυφος άλφα ϐήτα ΐ ΰ ᾳ",
    "cyrillic": "Жили-были старик и старуха Ёлка йогурт Їжак Ѣ ѵ́",
    "arabic": "السَّلَامُ عَلَيْكُم مرحبا بالعالم ٱلْحَمْدُ ۱۲۳ ﷺ ﻻ",
    "hebrew": "בְּרֵאשִׁית בָּרָא אֱלֹהִים שלום עולם שּׁ",
    "devanagari": "नमस्ते दुनिया हिन्दी क़लम किताब १२३ क्षत्रिय",
    "thai": "สวัสดีชาวโลก ภาษาไทย น้ำ กำ เก่า ๑๒๓",
    "han": "天地玄黃 宇宙洪荒 中文分词 漢字 㐀㐁 𠀀𠀁 豈更 〇一二 𫝀 𫠠",
    "kana": "こんにちは 世界 カタカナ ガギグ か\u3099き\u3099 ｶﾞｷﾞ ゟ ㍿ ー",
    "hangul": "안녕하세요 세계 한국어 \u1112\u1161\u11ab\u1100\u116e\u11a8 가각 \u3131\u3141",
    "georgian": "გამარჯობა მსოფლიო ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ ሰላም ለዓለም ፩፪",
    "emoji": "👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👍🏽 🇩🇪 ❤\ufe0f 😀 #\ufe0f\u20e3 🫠",
}
ODD = [
    "0", "42", "3.14", "2024-11-29", "٣", "²", "½", "Ⅷ", "①", "!", "?!", "...", "--", "(a)", "[x]", "{y}", "a_b",
    "$5", "€", "a+b=c", "<b>", "`", "^", "~", "|", "«q»", "„z“", "‘t’", "—", "…", "、", "。", "¡", "§", "¿", "\u0387",
    "\u2e2e", "＠", "aaaaaaaaaaaaaaaaaaaa", "!!!!!!!!!", "..........", "=" * 40, "x" * 101, "ab" * 60, "é" * 30,
    "中" * 12, "  ", "     ", "\t", "\t\t", "\n", "\n\n\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x1f", "\x85",
    "\u2028", "\u2029", "\0", "\x01", "\x07", "\x1b[0m", "\x7f", "\x80", "\x9f", "\u00ad", "\u200b", "\u200c",
    "\u200d", "\u200e", "\u2060", "\ufeff", "\u00a0", "\u2007", "\u202f", "\u3000", "\u1680", "\u180e", "\u2003",
    "\u061c", "\u202e", "\U000e0041", "ＡＢＣ", "１２３", "ａｂｃ！", "ﬁ", "ﬀ", "ﬅ", "Ǆ", "ǅ", "ĳ", "㎏", "℃", "™",
    "ｧ", "￦", "Å", "Ω", "K", "ſ", "ẞ", "ʼn", "e\u0301", "\u0301e", "a\u0323\u0307", "a\u0307\u0323", "\u0344",
    "q\u0307\u0323\u0301", "\u0301\u0301", "o\u0338", "\u0f71\u0f72", "\u0f73", "\u0958", "\u2126", "\ue000",
    "\uf8ff", "\U000f0000", "\U0010ffff", "\ufffd", "\ufffe", "\uffff", "▁", "▁▁", "▁a", "a▁b", "##a", "##", "#",
    "# a", "<s>", "</s>", "<unk>", "<pad>", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "[PAD]", "<|endoftext|>", "<0x0A>",
    "<0xFF>", "Ġ", "Ċ", "don't", "I'M", "they'll", "'s", "'S", "x'", "''", '"',
]  # fmt: skip
BETWEEN = ["", "", " ", " ", " ", "  ", "\n", "\t", ", ", ". ", "-", "\u00a0", "\u3000", "'"]


def texts(count: int, seed: int) -> list[str]:
    """`count` texts of up to a hundred words in one to three scripts; some words are odd, shuffled or truncated."""
    return [_text(Random(f"{seed} {number}")) for number in range(count)]


def _text(random: Random) -> str:
    scripts = random.sample([*SCRIPTS], random.choice([1, 1, 2, 3]))
    words = [word for script in scripts for word in SCRIPTS[script].split(" ")]
    odd = random.choice([0.0, 0.1, 0.3, 0.7])
    found = []
    for _ in range(random.choice([0, 1, 2, 5, 10, 30, 100])):
        word = random.choice(ODD) if random.random() < odd else random.choice(words)
        if random.random() < 0.1:
            word = "".join(random.sample(word, len(word)))
        if random.random() < 0.1:
            word = word[: random.randint(0, len(word))]
        found.append(random.choice([word, word, word, word.upper(), word.lower(), word.title()]))
        found.append(random.choice(BETWEEN))
    return "".join(found)
