#!/usr/bin/env python3
"""Writes golden/tokenizer/: three tiny byte-level BPE tokenizers, 240 odd strings, and the ids of these by the Python
package `tokenizers` (0.23), for the tokenizers and for variants of them. Needs that package alone."""
import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = pathlib.Path(__file__).parent / "golden" / "tokenizer"

COUNT = 240  # strings

CORPUS = """
Attention with linear biases adds to each score a bias that is proportional to the distance of query and key.
It's the model's own text, isn't it? They've said we'll see; I'd say you're right, and I'm not.
def forward(self, hidden_states, attention_mask=None):\n    return self.dense(hidden_states) + residual\n
for (int i = 0; i < 1024; i++) {\n\tsum += x[i] * y[i];\n}\n// 3.14159, 2,718.28 and 0xFF\n
Les modèles de langue apprennent à prédire le mot suivant, même après une très longue entrée.
Die größten Modelle lesen längere Texte, als sie beim Üben gesehen haben.
El modelo aprende rápidamente; ¿qué pasa con la información más antigua?
Модель предсказывает следующее слово, и длина текста не ограничена.
Το μοντέλο προβλέπει την επόμενη λέξη. 模型预测下一个词。注意力机制。 モデルは次の単語を予測します。
모델은 다음 단어를 예측합니다. النموذج يتوقع الكلمة التالية، وهذا جيد. मॉडल अगले शब्द की भविष्यवाणी करता है।
""".strip()

STRINGS = [
    # Next to nothing
    "", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n", "\n ", " \t \n ", "a", " a", "a ", "  a", "a  ", "  a  b  ",
    # White space of all kinds
    "a\u00a0b", "a\u0085b", "a\u1680b", "a\u180eb", "a\u2003b \u2003 c", "a\u2028b\u2029c", "a\u202fb", "a\u3000b",
    "\u3000a", "a\u200bb", "a\ufeffb", "\ufeffa", "a\vb\fc", "a\x1cb\x1db\x1eb\x1fb", "tab\tand  spaces \t mixed",
    "end of line \n  next", "trailing   ", "trailing\n", "trailing \n\n", "    indented\n        more", "a \n\n\n b",
    # Contractions
    "it's", "It'S", "we'll've", "I'd 'd ''d", "'s's", "don't can't won't", "o'clock", "'tis 'twas", "it\u2019s", "y'all're",
    "'", "''", "'''", "rock'n'roll", "'re've'll'm'd's't", "THEY'RE", "'\u017f",
    # Digits and numbers
    "0", "12345678901234567890", "1,234.56", "3.14e-10", "0xDEADBEEF", "1st 2nd 3rd", "\u00bd \u00b2\u00b3 \u2167",
    "\u0661\u0662\u0663", "\u0967\u0968\u0969", "\uff11\uff12\uff13", "\u2460\u2461", "a1b2c3", "2024-02-29T23:59:60Z",
    "192.168.0.1:8080", "\U0001d7d8\U0001d7d9", "100%", "$5.00", "1/2", "1 000 000",
    # Punctuation and symbols
    "...", "\u2026", "!?!?", "--", "\u2014", "()[]{}<>", "a,b;c:d", "\"quoted\"", "\u00abguillemets\u00bb", "#hashtag @user",
    "C++ & C#", "50\u20ac \u00a3 \u00a5", "\u2200x\u2208\u211d: x\u00b2\u22650", "(a|b)", "[.,!?]", "a|b (c) d.e,f!g?h",
    "x=y+z*w/v", "\\n is not \n", "~`^", "snake_case_name", "camelCaseName", "SCREAMING_CASE", "kebab-case", "a_b__c___d",
    "\u3002\uff0c\u3001", "\u0964\u06d4\u060c", "\u060c\u0627\u0644", "a\u3002b\uff0cc", "http://example.org/a?b=c&d=%20#e",
    "user@example.org", "C:\\Users\\x", "/usr/lib/x86_64", "<html><body class=\"x\">", "<!-- comment -->", "\\alpha^{2}_{i}",
    # Code
    "for(int i=0;i<n;++i){x[i]+=1;}", "def f(self):\n    return self.x\n", "if (a && b || !c) {\n\treturn;\n}", "x -> y => z",
    "#include <vector>", "import numpy as np", "{\"key\": [1, 2.5, null]}", "SELECT * FROM t WHERE id = 1;", "a\\\n  b",
    "/* c */ // d", "@decorator", "lambda x: x**2", "0b1010 0o17", "std::vector<std::pair<int, int>>",
    # Latin scripts
    "modèle", "mode\u0300le", "größten Über", "naïve façade", "¿qué?", "Łódź", "İstanbul ı", "ǅ ǆ", "ﬁ ligature", "Æsir œuvre",
    "Tiếng Việt", "Tie\u0302\u0301ng Vie\u0323\u0302t", "s\u0307\u0323 s\u0323\u0307", "\u00c5\u212b", "\u1e9b\u0323",
    # Other scripts
    "Модель и слово", "й и\u0306", "Ελληνικά λέξη", "\u1fb3 \u03b1\u0345", "\u0391\u037e", "עברית שלום", "\u05e9\u05b8\u05c1",
    "العربية كلمة", "مَدْرَسَة", "हिन्दी शब्द", "क\u093c \u0958", "বাংলা", "தமிழ்", "ภาษาไทย", "ພາສາລາວ", "မြန်မာ",
    "ქართული", "Հայերեն", "አማርኛ", "ᏣᎳᎩ", "ខ្មែរ", "བོད་སྐད", "\u1100\u1161\u11a8", "한국어 단어", "\uac00\u11a8",
    "日本語の単語", "中文模型", "\u304c \u304b\u3099", "ｶﾞ half", "\ufa10\uf900", "\U0002f800", "混合mixed文字123テスト",
    "𝒜𝓁𝓅𝒽𝒶", "𐍈𐌰", "\U00012000", "🀄",
    # Emoji
    "🙂", "👩\u200d👩\u200d👧", "👍🏽", "🇩🇪🇫🇷", "1\ufe0f\u20e3", "❤\ufe0f", "🙂🙂🙂 🙂", "a🙂b",
    # Marks alone, controls, ends of the code space
    "\u0301", "a\u0301\u0302\u0303\u0304", " \u0301x", "\u0344", "\x00", "a\x00b", "\x01\x02\x7f", "\x1b[31mred\x1b[0m",
    "\ufffd", "\ufffe\uffff", "\U0010ffff", "\U000e0001", "\u00ad", "\u202eabc\u202c", "\u2066a\u2069", "\ud7ff\ue000",
    # Long ones
    "a" * 150, "ab" * 60, " " * 70, "the " * 20, "\n" * 30, "é" * 40, "🙂" * 12, "x " * 30, "0" * 64, "aaaaab" * 12,
    # Added tokens, or nearly
    "<s>a</s>", "<s> a </s>", " <s>  <s> ", "<s", "<sep><sep>  x", "a  <sep>  b", "x<sep>y", "<mask>", "a <mask> b",
    "a<mask>b", "\u00e9<mask>", "<mask>\u0301 <mask>_ <mask>.", "\u24b6<mask>", "<nfc>\u00e9</nfc>", "<nfc>e\u0301</nfc> x",
    "<caf\u00e9>", "<cafe\u0301>", "abcabcd abcde", "abcab", "  <s>\n\t</s>\u3000\u00a0x", "\u0120\u010a", "<tab>\t<tab>",
]

# The pattern of BLOOM's tokenizer, a class inside a class, and the one that many took over from GPT-4.
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


def fill():
    """All the strings: what is missing is made of characters of the others."""
    generator = random.Random(1)
    characters = sorted(set("".join(STRINGS)))
    pieces = ["<s>", "<sep>", "<mask>", "'s", "  ", "\n", " the", "ing", "123"]
    strings = list(dict.fromkeys(STRINGS))
    while len(strings) < COUNT:
        strings.append("".join(generator.choice(characters if generator.random() < 0.7 else pieces) for _ in range(12)))
    return strings


def train(pre_tokenizer, merges):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(special) + merges, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer


def byte_level(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": True} | options)


def split(pattern, behavior, **options):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, behavior, **options), byte_level(use_regex=False)])


def with_added_tokens(tokenizer):
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=True)
    tokenizer.add_tokens(
        [
            AddedToken("<sep>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("<mask>", single_word=True, normalized=False),
            AddedToken("<tab>", rstrip=True, normalized=True),
            AddedToken("\t", normalized=False),
            AddedToken("<nfc>e\u0301</nfc>", normalized=True),
            AddedToken("<caf\u00e9>", normalized=True),
            AddedToken("abc", normalized=True),
            AddedToken("abcd", normalized=True),
            AddedToken("bcde", normalized=False),
        ]
    )
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]),
        ]
    )
    return tokenizer


def pairs_as_text(tokenizer):
    """The file as older versions wrote it: merges as "a b"."""
    content = json.loads(tokenizer.to_str())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    return content


def merged(base, patch):
    """JSON merge patch, RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def pre_tokenizer_patch(pre_tokenizer):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    return {"pre_tokenizer": json.loads(tokenizer.to_str())["pre_tokenizer"]}


def write(name, content):
    # ASCII alone: some of the strings are not for editors.
    (FOLDER / name).write_text(json.dumps(content, separators=(",", ":")) + "\n")


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    strings = fill()
    assert len(set(strings)) == COUNT
    bloom = train(split(Regex(BLOOM), "isolated"), 250)
    files = {
        "gpt2.json": pairs_as_text(train(byte_level(), 250)),
        "bloom.json": json.loads(bloom.to_str()),
        "added.json": json.loads(with_added_tokens(train(byte_level(), 150)).to_str()),
    }
    for name, content in files.items():
        write(name, content)

    few = list(range(0, COUNT, 4))
    cases = [(name, name, {}, list(range(COUNT))) for name in files]
    for behavior in ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]:
        for invert in [False, True]:
            patch = pre_tokenizer_patch(split(Regex(r"[\s,.]|(?=[A-Z<])"), behavior, invert=invert))
            cases.append((behavior + (", inverted" if invert else ""), "bloom.json", patch, few[::2]))
    patch = pre_tokenizer_patch(split(Regex(GPT4), "isolated"))
    cases.append(("GPT-4's pattern, whole words first", "gpt2.json", patch | {"model": {"ignore_merges": True}}, few))
    dialect = split(Regex(r"^[[\S]-[xyz\-]]\d|\u0061b|[-\s,]{2}|[\p{Lu}[.!]\x2d]$|\x{e9}"), "contiguous")
    cases.append(("what Oniguruma reads in its own way", "gpt2.json", pre_tokenizer_patch(dialect), few))
    cases.append(("a text", "gpt2.json", pre_tokenizer_patch(split("a.b|(", "removed")), few[::2]))
    unknown = {"model": {"unk_token": "<unk>", "vocab": {c: None for c in "\u00c3\u00a9\u0120e"}, "merges": []}}
    cases.append(("unknown bytes", "gpt2.json", unknown, few[::2]))
    unknown = merged(unknown, {"model": {"fuse_unk": True}})
    cases.append(("unknown bytes, fused", "gpt2.json", unknown, few[::2]))

    expected = []
    for name, file, patch, indices in cases:
        tokenizer = Tokenizer.from_str(json.dumps(merged(files[file], patch)))
        encoded = [tokenizer.encode(strings[i]).ids for i in indices]
        decoded = [tokenizer.decode(ids, skip_special_tokens=False) for ids in encoded]
        expected.append(
            {
                "name": name,
                "file": file,
                "patch": patch,
                "strings": indices,
                "ids": encoded,
                # By position, where it is not the string.
                "decoded": {str(n): text for n, (i, text) in enumerate(zip(indices, decoded)) if text != strings[i]},
            }
        )
    write("strings.json", strings)
    write("expected.json", expected)
    print({file.name: file.stat().st_size for file in sorted(FOLDER.iterdir())})
    print(sum(file.stat().st_size for file in FOLDER.iterdir()), "bytes")


if __name__ == "__main__":
    main()
