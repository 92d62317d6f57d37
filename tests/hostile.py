"""Texts as a model may write them, or a server may send them, to whoever shows them."""

# Each of these marks the page and asks the server, where a browser runs it.
_MARK = "document.documentElement.dataset.pwned=1;new Image().src='SERVER/js'"
MARKUP = {
    "script": f"<script>{_MARK}</script>",
    "closing": f"</script></style></title></td><script>{_MARK}</script>",
    "cdata": f"]]><script>{_MARK}</script><![CDATA[",
    "event": f'<img src="SERVER/img" onerror="{_MARK}">',
    "attribute": f'" onmouseover="{_MARK}" autofocus onfocus="{_MARK}" tabindex="1',
    "svg": f'<svg onload="{_MARK}"><use href="SERVER/svg#a"/></svg>',
    "frame": '<iframe src="SERVER/frame"></iframe>',
    "srcdoc": f'<iframe srcdoc="<script>parent.{_MARK}</script>"></iframe>',
    "style": "<style>@import 'SERVER/css';body{background:url(SERVER/bg)}</style>",
    "link": '<link rel="stylesheet" href="SERVER/link"><base href="SERVER/">',
    "object": '<object data="SERVER/object"></object><embed src="SERVER/embed">',
    "media": '<video src="SERVER/video" autoplay></video><audio src="SERVER/audio"></audio>',
}
REFRESH = '<meta http-equiv="refresh" content="0;url=SERVER/refresh">'
TERMINAL = {
    "ansi": "\x1b[31mred\x1b[0m \x1b[2J\x1b[1;1H \x9b2J",
    "osc": "\x1b]0;title\x07 \x1b]8;;http://far\x1b\\link\x1b]8;;\x1b\\ \x1b]52;c;YQ==\x07",
    "motion": "back\x08\x08\x08 over\r and \x7f",
    "bidi": "\u202eevil\u202c \u2066a\u2069 \u200f \u061c",
    "unseen": "nul \x00 \u200b \ufeff \u2028 \u2029 \U000e0041",
    "rich": "[/red] [bold]x[/] [link=http://far]y[/link] :smile:",
}
MARKDOWN = {
    "link": "[x](http://far) ![y](http://far/i.png) <http://far> www.far.org @someone",
    "blocks": "# title\n\n- item\n\n> quote\n\n```\ncode\n```\n\n| a | b |\n|---|---|\n1. one",
    "marks": "**bold** _it_ `code` ~~gone~~ $x$ &lt;script&gt; \\` \\| a|b",
    "front": "---\nlicense: evil\n---",
}
FORMULA = {"formula": "=HYPERLINK(\"http://far\") +1 -1 @SUM(A1) \t=cmd|' /C calc'!A0"}
TEXTS = {
    **{f"html-{name}": text for name, text in {**MARKUP, "refresh": REFRESH}.items()},
    **{f"terminal-{name}": text for name, text in TERMINAL.items()},
    **{f"markdown-{name}": text for name, text in MARKDOWN.items()},
    **FORMULA,
    "surrogate": "half \udc80 a pair \ud83d",
}
