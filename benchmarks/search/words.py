"""Words that can stand for each other, and words that must not: lists by hand, for questions about programming."""

from __future__ import annotations


def _both_ways(pairs: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs.split():
        one, _, other = pair.partition("/")
        found.setdefault(one, other)
        found.setdefault(other, one)
    return found


def _one_way(pairs: str) -> dict[str, str]:
    return {one: other.replace("_", " ") for one, _, other in (pair.partition("/") for pair in pairs.split())}


SYNONYMS = _one_way("""
    add/insert append/add apply/use begin/start build/construct call/invoke change/modify check/test close/shut
    compare/contrast compute/calculate connect/link convert/transform copy/duplicate count/tally create/make
    delete/erase determine/find_out discard/drop display/show execute/run extract/pull_out fetch/retrieve find/locate
    format/lay_out generate/produce get/obtain guess/estimate insert/put join/combine list/enumerate load/read_in
    log/record look/search make/create merge/combine modify/alter move/relocate obtain/get open/access parse/analyse
    print/output put/place raise/throw read/load receive/accept register/sign_up remove/delete rename/relabel
    replace/substitute reset/restore retrieve/fetch return/give run/execute save/store search/look_through send/transmit
    set/assign show/display sort/order split/divide start/launch stop/halt store/save test/verify update/refresh
    wait/pause wrap/enclose write/output

    argument/parameter arguments/parameters array/sequence attribute/property attributes/properties
    characters/letters children/descendants collection/container contents/content copy/duplicate current/present
    data/information description/explanation directory/folder duration/length elements/items entire/whole
    error/failure errors/failures exception/error existing/present file/document formatted/laid_out function/routine
    functions/routines given/supplied identifier/name index/position item/element items/elements iterable/collection
    kind/sort length/size list/sequence location/place mapping/dictionary message/text method/function name/label
    number/count object/instance objects/instances occurrences/appearances operand/argument options/settings
    parameter/argument path/location pathname/path position/offset process/program range/interval result/outcome
    sequence/series size/length specified/given string/text stream/channel timeout/time_limit tuple/record
    value/quantity values/quantities
""")
"""Another word with much the same meaning in such questions."""

SPELLINGS = _one_way("""
    analyze/analyse artifact/artefact behavior/behaviour canceled/cancelled cancelled/canceled catalog/catalogue
    center/centre color/colour colors/colours dialog/dialogue gray/grey honor/honour labeled/labelled license/licence
    neighbor/neighbour signaled/signalled signaling/signalling
    backslash/back_slash bytecode/byte_code codepoint/code_point datetime/date_time docstring/doc_string
    filename/file_name filenames/file_names filesystem/file_system hostname/host_name lowercase/lower_case
    mailbox/mail_box newline/new_line newlines/new_lines pathname/path_name runtime/run_time shortcut/short_cut
    substring/sub_string timeout/time_out timestamp/time_stamp timezone/time_zone traceback/trace_back
    uppercase/upper_case username/user_name whitespace/white_space
""")
"""British and American, and words that are written as one or as two."""

ANTONYMS = _both_ways("""
    absolute/relative acquire/release add/remove after/before allow/deny append/pop ascending/descending begin/end
    big/little blocking/nonblocking ceiling/floor child/parent client/server compress/decompress connect/disconnect
    cosine/sine create/delete daemon/foreground decode/encode degrees/radians denominator/numerator
    destination/source disable/enable dump/load empty/full encrypt/decrypt escape/unescape even/odd exclude/include
    first/last false/true fixed/variable get/set hard/symbolic high/low higher/lower imaginary/real
    immutable/mutable incoming/outgoing increment/decrement infinite/finite input/output insert/remove install/uninstall
    largest/smallest leading/trailing left/right local/remote lock/unlock locked/unlocked longest/shortest
    lowercase/uppercase maximum/minimum max/min negative/positive new/old next/previous open/close pack/unpack
    private/public quote/unquote read/write reading/writing readable/writable receive/send register/unregister
    resume/suspend sender/recipient signed/unsigned start/stop started/stopped success/failure
""")
"""The opposite: another question, most of whose words are the same."""

OBJECTS = _one_way("""
    address/port alias/group argument/result array/queue attribute/method attributes/methods bytes/lines
    character/line characters/lines class/function code/comment connection/cursor context/frame cookie/header
    cookies/headers data/errors date/time day/month decimal/complex descriptor/buffer dictionary/tuple directory/socket
    element/comment encoding/version error/warning event/queue exception/warning field/section file/socket
    filename/hostname float/date flag/signal function/module generator/class group/user handler/filter header/cookie
    headers/cookies host/user id/name index/length integer/date item/key items/keys iterable/string iterator/set
    key/thread keys/threads length/type level/name limit/name line/word lines/words list/string lock/file log/socket
    mailbox/archive mapping/string memory/disk message/thread method/class mode/owner module/process name/size
    node/frame number/name object/process option/header package/thread parameter/header path/thread pattern/locale
    pipe/file position/name priority/name process/module queue/lock request/cookie result/name section/message
    sequence/matrix server/mailbox set/list signal/timer size/name socket/file stack/queue stream/archive string/list
    substring/key task/file test/mailbox thread/mailbox time/path timeout/encoding timestamp/checksum token/path
    transport/archive tuple/file type/owner url/file user/file value/name values/names word/byte zone/file
""")
"""Another thing that the same can be asked of: neither number, name nor opposite gives it away."""

NUMBERS = _one_way("zero/one one/two two/three three/four four/five single/double once/twice half/quarter")

CONTRACTIONS = {
    "what is": "what's",
    "I would": "I'd",
    "is not": "isn't",
    "are not": "aren't",
    "does not": "doesn't",
    "do not": "don't",
    "has not": "hasn't",
    "cannot": "can't",
    "that is": "that's",
    "it is": "it's",
}

OPENINGS = ("how do I", "how can I", "what is the way to", "I would like to")
"""How needs begin when they are first asked."""

OTHER_OPENINGS = (
    "how to",
    "is there a function to",
    "which function should I call to",
    "show me how to",
    "what can I use to",
    "I need to",
    "my program has to",
)
FILLERS = (
    ("please tell me: ", ""),
    ("hi, ", ""),
    ("quick question: ", ""),
    ("could you help me? ", ""),
    ("", ", please"),
    ("", ", thanks"),
    ("sorry to ask, but ", ", thank you very much"),
)
"""Before and after a question."""

NEGATED_OPENINGS = ("how do I not", "how do I make sure never to", "how do I avoid having to")
ARTICLES = frozenset(("a", "an", "the"))
PREPOSITIONS = frozenset("from in into for with to on by using of at as under over between through".split())
FRONTABLE = PREPOSITIONS - {"of", "as", "to", "for"}
"""Prepositions whose phrase can stand before the question."""
