"""Words by which people and models state, deny or list answers, in the languages of common data sets. Pure.

Each constant is a part of a regular expression.
"""
# ruff: noqa: RUF001 (words of other alphabets are meant, and one word a line would hide the rest)


def one_of(words: str) -> str:
    """Any of these words, standing alone; `_` is a space, and small letters are capitals too."""
    alternatives = "|".join(word.replace("_", r"\s+") for word in words.split())
    return rf"(?i:(?<!\w)(?:{alternatives})(?!\w))"


_ANSWER = r"""
answer lösung antwort r[ée]ponse respuesta risposta resposta antwoord odpowied[źz]\w* svar(?:et)?
odpov[ěe][ďd] válasz vastaus r[ăa]spuns(?:ul)? cevap yan[ıi]t jawaban(?:nya)? đáp_án câu_trả_lời sagot
ответ\w* відповідь απάντηση תשובה התשובה الإجابة الاجابة الجواب جواب پاسخ उत्तर जवाब উত্তর
"""
ANSWER = one_of(_ANSWER) + "|答案|答え|回答|解答|正解|정답|답변?|คำตอบ|ตอบ"

_RESULT = "result solution ergebnis résultat resultado risultato resultaat wynik результат النتيجة"
RESULT = one_of(_RESULT) + "|結果|结果|결과"

_CHOICE = r"""
choices? options? correct_one pick(?:ed)? choose chose select(?:ed)? go(?:ing)?_with went_with opt_for
vote_for letter wahl wähle choix choisis opci[óo]n elijo opzione scelta op[çc][ãa]o alternativa keuze
вариант\w* الخيار विकल्प گزینه
"""
CHOICE = one_of(_CHOICE) + "|选项?|選項?|应选|故选|選擇|选择|선택"

_RIGHT = r"""
correct right answer best true richtige?n? korrekt antwort bonne correct[eao] juste respuesta corretta
giusta corret[ao] certa juiste? poprawna rätt doğru правильн\w* верн\w*
"""
RIGHT = one_of(_RIGHT) + "|正确|正確|正しい|正解|答案|정답|맞|सही"

_IS = "is was would_be seems fits must_be ist est es é è to jest är это"
IS = rf"(?:\s+{one_of(_IS)}|\s*(?:是|が|は|가|이|은|는|[\u2013\u2014-](?=\s))|\s+(?=सही))"

_EQUALS = "is are was equals would_be should_be must_be ist lautet est es è é"
EQUALS = one_of(_EQUALS) + "|[:=是为為は은는]|هو|هي"

_NOT = r"""
not never neither nor isn't wasn't cannot can't won't doesn't don't rather_than instead_of unlike except
incorrect wrong false excludes? eliminate[ds]? rule_out ruled_out nicht kein\w* falsch\w* pas non fausse?
anything_but everything_but all_but incorrecte? no incorrect[ao] falsa não errad[ao] niet nie ikke inte
değil bukan không не нет неверн\w* неправильн\w*
"""
NOT = one_of(_NOT) + r"|n't\b|不|没|非|错|錯|誤|ではな|じゃな|아니|틀[린렸]|नहीं|ليس|غير"
NOT_AFTER = r"\s*(?:가|이|은|는|は|が|也)?\s*(?:아니|不|ではな|じゃな|नहीं|değil|bukan)"

_OR_AND = "and or und oder et ou and/or y o u e en of и или na veya ve atau dan hoặc và"
OR_AND = one_of(_OR_AND) + "|或者?|和|、|또는|または|[와과]|أو"
OR = one_of("or oder ou или або atau veya hoặc") + "|或者?|または|또는|أو"
OTHER_OR = (
    one_of("nebo eller vagy tai sau lub albo ya_da либо ή या یا או versus vs") + r"|(?i:\bvs\.)|或|还是|還是"
)
"""More words that part alternatives, safe between answers in words but not between letters of choices."""

_LEAD_IN = """
in on at by for from after before during when as according so thus therefore hence well yes no indeed okay ok
finally overall sure certainly my the_answer final_answer
"""
LEAD_IN = one_of(_LEAD_IN)
"""Before a comma these begin what only leads to the answer."""

_BECAUSE = r"""
because since as whereas while but although though unlike rather_than instead_of due_to given_that weil da
denn obwohl parce_que car porque ya_que pues perché poiché omdat ponieważ eftersom
потому так_как поскольку çünkü karena vì
"""
BECAUSE = one_of(_BECAUSE) + "|因为|因為|なぜなら|왜냐하면|क्योंकि|لأن"

_UNSURE = r"""
not never neither nor isn't aren't wasn't cannot can't wrong incorrect unknown between than least most
twice double triple thrice over under above below exceeds? up_to except half quarters? thirds? hundreds?
thousands? millions? billions? trillions? either maybe perhaps or out_of squared cubed minus negative
squares?_root factorial plus times_the nicht kein\w* mehr_als weniger_als pas plus_de moins_de más_de
menos_de не больше меньше
"""
UNSURE = one_of(_UNSURE) + "|不|没|大于|小于|至少|至多|以上|以下|ではな|万|萬|亿|億|억"
"""Before a number: it is not the value, but a limit, denied, or a part of it."""

_UNSURE_AFTER = r"""
or and_a_half half quarters? thirds? hundreds? thousands? millions? billions? trillions? squared cubed
factorial is_not isn't was_not wasn't is_wrong is_incorrect at_most at_least minimum maximum plus minus
times_the if and_above and_up and_over and_more oder ou
"""
UNSURE_AFTER = one_of(_UNSURE_AFTER) + "|不|没|以上|以下|ではな|万|萬|亿|億|억"
"""The same behind a number."""

_PARTICLES = """
은 는 이 가 을 를 의 에 에서 에게 로 으로 와 과 도 만 부터 까지 보다 처럼 이나 나 한테 께 께서 랑 이랑 하고
이며 이고 라는 이라는 라고 이라고
"""
KOREAN_PARTICLES = _PARTICLES.split()
_COPULAS = """
이다 다 입니다 이에요 예요 이요 였다 이었다 였습니다 이었습니다 이야 야 임 이지만 인데 합니다
"""
KOREAN_COPULAS = _COPULAS.split()
CHINESE_YES_NO = frozenset("是否对對错錯有无無能会會不")
CHINESE_DENIALS = "不没沒非未无無别勿"
"""Signs that deny what follows."""
_CLOSING = """
I_hope hope_this hope_that hope_it let_me_know feel_free please_let if_you_have if_you_need
is_there_anything thank_you thanks
"""
CLOSING = one_of(_CLOSING)
"""How models take leave behind an answer."""

_DOUBTED = r"""
doubt\w* unlikely improbable implausible tempting plausible attractive rul(?:e|es|ed|ing)(?:_\w+)?_out
discard(?:ed)? reject(?:ed)? excluded eliminating nope no_wait unwahrscheinlich improbables? wrongly
"""
DOUBTED = f"{NOT}|{one_of(_DOUBTED)}|아닙|아닌|(?:では|じゃ)あり"
"""What keeps a choice in the same clause from being the answer."""
NO_DOUBT = one_of("no_doubt without_(?:a_)?doubt not_only undoubtedly doubtless")
REASON = one_of(
    "because since as due_to given_that weil da denn parce_que car porque ya_que pues perché omdat потому_что"
)
"""What opens a reason, in which other choices may be named."""
SO = one_of("so therefore thus hence consequently daher donc luego quindi значит") + "|所以|因此"
CONCESSION = one_of("while although though whereas unlike despite obwohl bien_que aunque sebbene хотя")
CONTRAST = (
    one_of("but however yet sondern sino mais ma maar но а aber pero") + "|而是|ではなく|じゃなく|아니라"
)
