"""Mails are read whatever they are written in, put in threads, and searched for answers to quoted lines."""

import pytest

from chinchilla.data.mail import Mail, read_mail, replies, threads


def mail(tmp_path, content: bytes) -> Mail:
    path = tmp_path / "mail.txt"
    path.write_bytes(content)
    return read_mail(path)


def test_a_plain_mail(tmp_path):
    content = b"From a Thu Aug 22 2002\nSubject: [list] Hello\nContent-Type: text/plain\n\nOne\r\n\r\nTwo \n"
    assert mail(tmp_path, content) == Mail("[list] Hello", "One\n\nTwo")


@pytest.mark.parametrize(
    ("charset", "raw", "text"),
    [
        ("utf-8", "高い".encode(), "高い"),
        ("iso-8859-1", b"caf\xe9 \x93quoted\x94", "café “quoted”"),
        ("euc-kr", "광고".encode("euc-kr"), "광고"),
        ("no-such-thing", b"caf\xe9", "café"),
        ("us-ascii", "naïve".encode(), "naïve"),
        ("hex", b"6162", "6162"),
        ("utf-8", b"\x81\xff", "\x81ÿ"),
    ],
)
def test_text_is_decoded_as_it_says_or_as_is_usual(tmp_path, charset, raw, text):
    assert mail(tmp_path, f"Content-Type: text/plain; charset={charset}\n\n".encode() + raw) == Mail("", text)


def test_subjects_may_be_encoded(tmp_path):
    assert mail(tmp_path, b"Subject: =?iso-8859-1?Q?Caf=E9?= today\n\nx").subject == "Café today"
    assert mail(tmp_path, b"Subject: =?utf-8?B?abcde?=\n\nx").subject == "=?utf-8?B?abcde?="


def test_the_plain_part_is_taken_and_html_loses_its_tags(tmp_path):
    parts = "--b\nContent-Type: text/html\n\n{html}\n{plain}--b--\n"
    page = "<style>p {color: red}</style><!-- no --><p>Fish &amp;\n   <b>chips</b></p><script>run()</script>\n<p>now"
    head = "Content-Type: multipart/alternative; boundary=b\n\n"
    both = head + parts.format(html=page, plain="--b\nContent-Type: text/plain\n\nFish.\n")
    assert mail(tmp_path, both.encode()).text == "Fish."
    assert mail(tmp_path, (head + parts.format(html=page, plain="")).encode()).text == "Fish &\nchips\nnow"


def test_a_mail_without_text(tmp_path):
    assert mail(tmp_path, b"Subject: picture\nContent-Type: image/gif\n\nGIF89a") == Mail("picture", "")


def test_threads_go_by_subject_and_by_near_copies():
    letter = " ".join(f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(200))
    mails = [
        Mail("Lunch", "at noon"),
        Mail("Re: [food] LUNCH?", "no, later, since the train that brings me is late again"),
        Mail("Offer XKQ", letter + " code one"),
        Mail("Something else", letter + " code two"),
        Mail("", "nothing said"),
        Mail("123", "not a word in the subject"),
    ]
    assert threads(mails) == [0, 0, 2, 2, 4, 5]


def test_answers_stand_below_what_they_quote():
    text = """John wrote:
> Shall we meet
> on Friday evening?

Yes, with pleasure.

And more of this.

>> Older words that were said before.
> A statement that needs no word.
>
> Where is the place?
At the harbour.

> Look at http://x.example/ for me.
I did that.
--
> Under a signature, so left out.
Nothing counts here.
"""
    assert list(replies(text)) == [
        ("Shall we meet on Friday evening?", "Yes, with pleasure."),
    ]
    assert list(replies(text.replace("Where is the place?", "Where is the place that you mean?")))[1:] == [
        ("Where is the place that you mean?", "At the harbour."),
    ]
