//! Tests of `llm_core::grammar`.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;

use llm_core::Error;
use llm_core::grammar::{Grammar, GrammarCompiler, GrammarSource, Matcher, Vocabulary};
use proptest::prelude::*;

/// All bytes, then longer tokens that cross the borders of JSON's own tokens.
const WORDS: [&str; 18] = [
    "{\"", "\":", "\":\"", "\",\"", "\"}", "true", "tr", "false", "null", "12", "-1", "name", "na", "éx", "[[", "]]",
    " \"", "\\n",
];
const END: u32 = 256 + WORDS.len() as u32;

struct Words(Vec<Option<Vec<u8>>>);

impl Words {
    fn new() -> Self {
        let bytes = (0..=255_u8).map(|byte| Some(vec![byte]));
        let words = WORDS.iter().map(|word| Some(word.as_bytes().to_vec()));
        Self(bytes.chain(words).chain([Some(b"<|end|>".to_vec()), None]).collect())
    }
}

impl Vocabulary for Words {
    fn num_ids(&self) -> usize {
        self.0.len()
    }

    fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.0[id as usize].as_deref()
    }

    fn is_special_token(&self, id: u32) -> bool {
        id == END
    }
}

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(Arc::new(Words::new()), vec![END])
}

fn schema(text: &str) -> GrammarSource {
    GrammarSource::JsonSchema { schema: text.to_owned(), is_compact: false }
}

fn compiled(source: &GrammarSource) -> Grammar {
    compiler().compile(source).unwrap()
}

/// Whether the text is accepted, taken byte by byte.
fn accepts(grammar: &Grammar, text: &str) -> bool {
    let mut matcher = grammar.start();
    let takes = text.bytes().all(|byte| !matcher.is_complete() && matcher.consume(u32::from(byte)).is_ok());
    takes && matcher.allowed().unwrap().may_end
}

/// The obvious twin of a mask: a token is allowed if a fresh matcher takes the text so far and then the token's bytes.
fn twin_allows(grammar: &Grammar, so_far: &[u8], token: &[u8]) -> bool {
    let mut matcher = grammar.start();
    let mut bytes = so_far.iter().chain(token);
    bytes.all(|&byte| !matcher.is_complete() && matcher.consume(u32::from(byte)).is_ok())
}

const SOURCES: [&str; 9] = [
    r#"{"type":"object","properties":{"name":{"type":"string"},"n":{"type":"integer"}},"required":["name"],"additionalProperties":false}"#,
    r#"{"type":"array","items":{"enum":["true",true,12,null]},"minItems":1,"maxItems":3}"#,
    r#"{"anyOf":[{"type":"null"},{"type":"number","minimum":-3,"maximum":12}]}"#,
    r#"{"type":"string","pattern":"^na(me)*é?$"}"#,
    r#"{"type":"string","maxLength":3}"#,
    r#"{"type":"string","format":"date"}"#,
    r##"{"$ref":"#/$defs/node","$defs":{"node":{"type":"array","items":{"$ref":"#/$defs/node"},"maxItems":2}}}"##,
    r#"{"type":"object","patternProperties":{"^n":{"type":"boolean"}},"additionalProperties":false}"#,
    r#"{"type":"integer","multipleOf":5,"exclusiveMinimum":0}"#,
];

fn sources() -> Vec<GrammarSource> {
    let mut sources: Vec<_> = SOURCES.iter().map(|text| schema(text)).collect();
    sources.extend([
        GrammarSource::json_object(),
        GrammarSource::JsonSchema { schema: SOURCES[0].to_owned(), is_compact: true },
        GrammarSource::Regex(r"(name|12)+-1[a-c]{2,4}".to_owned()),
        GrammarSource::Choice(vec!["true".to_owned(), "tr".to_owned(), "false [[".to_owned()]),
        GrammarSource::Lark("start: greeting %json {\"type\":\"boolean\"}\ngreeting: \"name\" | \"éx\"".to_owned()),
    ]);
    sources
}

/// Goes through one answer: at each step the mask must equal the twin's, and `pick` chooses the next token.
fn check_masks(grammar: &Grammar, picks: &[u32]) {
    let words = Words::new();
    let (mut matcher, mut text) = (grammar.start(), Vec::new());
    for pick in picks {
        let allowed = matcher.allowed().unwrap();
        let ids: Vec<u32> = (0..END).filter(|&id| allowed.contains(id)).collect();
        let by_twin = (0..END).filter(|&id| twin_allows(grammar, &text, words.token_bytes(id).unwrap()));
        assert_eq!(ids, by_twin.collect::<Vec<_>>(), "after {:?}", String::from_utf8_lossy(&text));
        assert!(!allowed.contains(END) && !allowed.contains(END + 1));
        // Asking for the forced text changes nothing, and the grammar takes it.
        let forced = matcher.forced(4);
        assert_eq!(matcher.num_valid(&forced), forced.len());
        assert_eq!(matcher.allowed().unwrap(), allowed);
        let next =
            if forced.is_empty() { ids.get(*pick as usize % ids.len().max(1)).copied() } else { Some(forced[0]) };
        let Some(id) = next else { break };
        matcher.consume(id).unwrap();
        text.extend(words.token_bytes(id).unwrap());
        if matcher.is_complete() {
            assert!(matcher.allowed().unwrap() == llm_core::grammar::Allowed { words: Vec::new(), may_end: true });
            break;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn masks_equal_those_of_a_fresh_matcher_for_each_token(picks in prop::collection::vec(0_u32..4096, 8)) {
        let compiler = compiler();
        for source in sources() {
            check_masks(&compiler.compile(&source).unwrap(), &picks);
        }
    }
}

#[test]
fn grammars_accept_what_they_describe_and_nothing_else() {
    let table: [(GrammarSource, &[&str], &[&str]); 6] = [
        (
            schema(SOURCES[0]),
            &[r#"{"name":"é\n"}"#, "{ \"name\": \"\",\n  \"n\": -5\n}"],
            &["{}", r#"{"n":1}"#, r#"{"name":"","x":1}"#, r#"{"name":"","n":01}"#],
        ),
        (schema(SOURCES[2]), &["null", "-3", "12", "11.5"], &["13", "-3.5", "nul"]),
        (GrammarSource::json_object(), &["{}", r#"{"a":[1,{"b":null}]}"#], &["[]", "1", "{", r#"{"a":}"#]),
        (GrammarSource::Regex("^a/b\n?$".to_owned()), &["a/b", "a/b\n"], &["a", "a/bb"]),
        (GrammarSource::Choice(vec!["a.c".to_owned(), "x|/\n".to_owned()]), &["a.c", "x|/\n"], &["abc", "x", ""]),
        (GrammarSource::Lark("start: WORD (\",\" WORD)*\nWORD: /[a-c]+/".to_owned()), &["a", "ab,c"], &["", "a,", "d"]),
    ];
    for (source, good, bad) in table {
        let grammar = compiled(&source);
        good.iter().for_each(|text| assert!(accepts(&grammar, text), "{source:?} refuses {text}"));
        bad.iter().for_each(|text| assert!(!accepts(&grammar, text), "{source:?} accepts {text}"));
    }
}

#[test]
fn a_special_token_counts_only_where_the_grammar_names_it() {
    let grammar = compiled(&GrammarSource::Lark("start: \"na\" <|end|> /[a-z<|>]*/".to_owned()));
    let mut matcher = grammar.start();
    matcher.consume(u32::from(b'n')).unwrap();
    matcher.consume(u32::from(b'a')).unwrap();
    let allowed = matcher.allowed().unwrap();
    assert!(allowed.contains(END) && !allowed.contains(u32::from(b'<')));
    matcher.consume(END).unwrap();
    let allowed = matcher.allowed().unwrap();
    assert!(!allowed.contains(END) && allowed.contains(u32::from(b'<')) && allowed.may_end);
}

#[test]
fn a_special_token_may_be_all_that_can_follow() {
    let lark = format!("start: \"a\" <[{END}]> \"</b\"");
    let mut matcher = compiled(&GrammarSource::Lark(lark)).start();
    for id in [u32::from(b'a'), END, u32::from(b'<'), u32::from(b'/'), u32::from(b'b')] {
        assert!(matcher.forced(8).is_empty());
        assert!(matcher.allowed().unwrap().contains(id));
        matcher.consume(id).unwrap();
    }
    assert!(matcher.is_complete());
    let text = GrammarSource::Lark(r#"start: "</\"a" /<[<]/"#.to_owned());
    assert_eq!(compiled(&text).start().forced(8).len(), 6);
}

/// `Words` with a tokenizer that knows how one text is cut.
struct Cut(Words, &'static str, Vec<u32>);

impl Vocabulary for Cut {
    fn num_ids(&self) -> usize {
        self.0.num_ids()
    }

    fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.0.token_bytes(id)
    }

    fn is_special_token(&self, id: u32) -> bool {
        self.0.is_special_token(id)
    }

    fn encode(&self, text: &str) -> Option<Vec<u32>> {
        (text == self.1).then(|| self.2.clone())
    }
}

#[test]
fn forced_text_is_cut_as_the_tokenizer_cuts_it() {
    let word = |word: &str| 256 + WORDS.iter().position(|own| *own == word).unwrap() as u32;
    let letter = |letter: u8| u32::from(letter);
    let longest = vec![word("true"), word("name")];
    let own = vec![word("tr"), letter(b'u'), letter(b'e'), word("na"), letter(b'm'), letter(b'e')];
    let with_space = [vec![letter(b' ')], own.clone()].concat();
    for (text, ids, expected) in
        [("truename", own.clone(), &own), ("truename", with_space, &longest), ("other", own.clone(), &longest)]
    {
        let compiler = GrammarCompiler::new(Arc::new(Cut(Words::new(), text, ids)), vec![END]);
        let grammar = compiler.compile(&GrammarSource::Choice(vec!["truename".to_owned()])).unwrap();
        assert_eq!(&grammar.start().forced(8), expected);
        assert_eq!(grammar.start().forced(1), expected[..1]);
    }
}

#[test]
fn answers_at_once_do_not_share_their_place() {
    let grammar = compiled(&GrammarSource::Choice(vec!["na".to_owned(), "tr".to_owned()]));
    let mut matchers: Vec<Matcher> = (0..4).map(|_| grammar.start()).collect();
    for (index, matcher) in matchers.iter_mut().enumerate() {
        matcher.consume(u32::from(if index % 2 == 0 { b'n' } else { b't' })).unwrap();
    }
    for (index, matcher) in matchers.iter_mut().enumerate() {
        assert_eq!(matcher.allowed().unwrap().contains(u32::from(b'a')), index % 2 == 0);
    }
    drop(matchers);
    assert!(accepts(&grammar, "na") && accepts(&grammar, "tr"));
}

fn problem(source: &GrammarSource) -> String {
    match compiler().compile(source) {
        Err(Error::InvalidArgument(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_keyword_that_is_not_enforced_is_refused_with_its_place() {
    for keyword in [
        "not",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "propertyNames",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedItems",
        "unevaluatedProperties",
        "$dynamicRef",
        "$dynamicAnchor",
        "$recursiveRef",
        "$recursiveAnchor",
        "$vocabulary",
        "contentSchema",
        "maxLenght",
        "nullable",
    ] {
        let message = problem(&schema(&format!(r#"{{"properties":{{"a":{{"items":{{"{keyword}":true}}}}}}}}"#)));
        let expected = format!("`json` has the keyword `{keyword}` at #/properties/a/items, which is not supported");
        assert!(message.starts_with(&expected), "{message}");
    }
    assert!(problem(&schema(r#"{"uniqueItems":true}"#)).contains("`uniqueItems` at #,"));
    assert!(problem(&schema(r#"{"x-guidance":{"lenient":true}}"#)).contains("`x-guidance` at #,"));
    let inline = GrammarSource::Lark("start: %json {\"not\":{}}".to_owned());
    assert!(problem(&inline).starts_with("`grammar` holds a `%json` that has the keyword `not` at #,"));
    let lenient = GrammarSource::Lark("start: %json {\"x-guidance\":{\"lenient\":true}}".to_owned());
    assert!(
        problem(&lenient).starts_with("`grammar` has the option `x-guidance.lenient`, allowed are: item_separator")
    );
}

#[test]
fn unions_told_apart_by_a_property_are_accepted_through_references() {
    let union = |kinds: [&str; 2], needs_key: bool| {
        let animal = |kind: &str, key: &str| {
            let more = if needs_key { format!(r#","{key}""#) } else { String::new() };
            format!(
                r#"{{"type":"object","properties":{{"kind":{kind},"{key}":{{"type":"integer"}}}},
                "required":["kind"{more}],"additionalProperties":false}}"#
            )
        };
        schema(&format!(
            r##"{{"type":"array","items":{{"oneOf":[{{"$ref":"#/$defs/a"}},{{"$ref":"#/$defs/b"}}],
            "discriminator":{{"propertyName":"kind"}}}},"$defs":{{"a":{},"b":{},"t":{{"enum":["b","c"]}}}}}}"##,
            animal(kinds[0], "x"),
            animal(kinds[1], "y"),
        ))
    };
    for kinds in [
        [r#"{"const":"a"}"#, r#"{"const":"b"}"#],
        [r#"{"enum":["a"]}"#, r#"{"enum":["c","b"]}"#],
        [r#"{"const":"a","type":"string"}"#, r##"{"$ref":"#/$defs/t"}"##],
    ] {
        let grammar = compiled(&union(kinds, true));
        assert!(accepts(&grammar, r#"[{"kind":"a","x":1}]"#));
        assert!(!accepts(&grammar, r#"[{"kind":"b","x":1}]"#) && !accepts(&grammar, r#"[{"kind":"a","y":1}]"#));
    }
    for kinds in [
        [r#"{"const":"a"}"#, r#"{"enum":["a","b"]}"#],
        [r#"{"const":"a"}"#, r#"{"type":"string"}"#],
        [r#"{"const":1}"#, r#"{"const":1.0}"#],
    ] {
        assert!(problem(&union(kinds, false)).contains("`oneOf` whose branches may overlap"));
    }
    // Without a discriminator, a property that may be missing tells nothing apart, and neither does one of what need not
    // be an object.
    for branch in [r#""type":"object""#, r#""required":["kind"]"#] {
        let text = format!(
            r##"{{"oneOf":[{{"$ref":"#/$defs/a"}},{{"$ref":"#/$defs/b"}}],"$defs":{{
            "a":{{{branch},"properties":{{"kind":{{"const":"a"}}}}}},
            "b":{{{branch},"properties":{{"kind":{{"const":"b"}}}}}}}}}}"##
        );
        assert!(problem(&schema(&text)).contains("`oneOf` whose branches may overlap"));
    }
}

#[test]
fn a_discriminator_is_required_where_its_property_was_not() {
    let part = |kind: &str, more: &str| {
        format!(r#"{{"type":"object","properties":{{"kind":{{"const":"{kind}","default":"{kind}"}}{more}}}}}"#)
    };
    let text = format!(
        r##"{{"$ref":"#/$defs/list","$defs":{{"leaf":{},"list":{},
        "item":{{"oneOf":[{{"$ref":"#/$defs/leaf"}},{{"$ref":"#/$defs/list"}},{}],
        "discriminator":{{"propertyName":"kind"}}}}}}}}"##,
        part("leaf", r#","x":{"type":"integer"}"#),
        part("list", r##","items":{"type":"array","items":{"$ref":"#/$defs/item"}}"##),
        part("in/line", ""),
    );
    let grammar = compiled(&schema(&text));
    assert!(accepts(&grammar, r#"{"kind":"list","items":[{"kind":"leaf","x":1},{"kind":"in/line"},{"kind":"list"}]}"#));
    // An item without its kind fits several branches, so validators refuse it.
    assert!(!accepts(&grammar, r#"{"kind":"list","items":[{}]}"#));
    assert!(!accepts(&grammar, r#"{"kind":"list","items":[{"kind":"list","x":"no","items":[1]}]}"#));
    let same = text.replace("in/line", "leaf");
    let message = problem(&schema(&same));
    assert!(
        message.contains("`oneOf` whose branches may overlap\nhint: use `anyOf`, or give the branches"),
        "{message}"
    );
}

#[test]
fn unions_of_different_types_and_values_are_accepted_through_references() {
    for (one, other, accepted, refused) in [
        (r#"{"type":"string"}"#, r#"{"type":["integer","null"]}"#, ["\"a\"", "null"], "1.5"),
        (r#"{"enum":[1,2]}"#, r#"{"const":3}"#, ["2", "3"], "4"),
        (r#"{"enum":["a",true]}"#, r#"{"type":"object"}"#, ["true", "{}"], "false"),
        (
            r#"{"type":"object","properties":{"v":{"const":1}},"required":["v"]}"#,
            r#"{"type":"object","properties":{"v":{"type":"string"}}}"#,
            [r#"{"v":1}"#, r#"{"v":"a"}"#],
            r#"{"v":2}"#,
        ),
    ] {
        let text = format!(
            r##"{{"oneOf":[{{"$ref":"#/$defs/a"}},{{"$ref":"#/$defs/b"}}],"$defs":{{"a":{one},"b":{other}}}}}"##
        );
        let grammar = compiled(&schema(&text));
        assert!(accepted.iter().all(|text| accepts(&grammar, text)), "{text}");
        assert!(!accepts(&grammar, refused), "{text}");
    }
    for (one, other) in [
        (r#"{"type":"integer"}"#, r#"{"type":"number"}"#),
        (r#"{"enum":[1,2]}"#, r#"{"enum":[2.0,3]}"#),
        (r#"{"enum":[[1]]}"#, r#"{"type":"array"}"#),
        (r#"{"type":"string"}"#, "true"),
    ] {
        let text = format!(
            r##"{{"oneOf":[{{"$ref":"#/$defs/a"}},{{"$ref":"#/$defs/b"}}],"$defs":{{"a":{one},"b":{other}}}}}"##
        );
        assert!(problem(&schema(&text)).contains("`oneOf` whose branches may overlap"), "{text}");
    }
}

#[test]
fn a_reference_into_a_branch_of_a_union_stays_valid() {
    let text = r##"{"properties":{"a":{"oneOf":[{"type":"integer"},{"type":"null"}]},
        "b":{"$ref":"#/properties/a/oneOf/0"}},"required":["b"],"additionalProperties":false}"##;
    let grammar = compiled(&schema(text));
    assert!(accepts(&grammar, r#"{"b":1}"#) && !accepts(&grammar, r#"{"b":null}"#));
}

#[test]
fn an_object_of_many_optional_properties_goes_on_past_its_first_token() {
    let names: Vec<_> = (0..600).map(|i| format!(r#""p{i}":{{"type":"integer"}}"#)).collect();
    let text = format!(r#"{{"type":"object","properties":{{{}}},"additionalProperties":false}}"#, names.join(","));
    let grammar = compiled(&schema(&text));
    assert!(accepts(&grammar, r#"{"p3":1,"p300":2,"p599":3}"#));
    assert!(!accepts(&grammar, r#"{"p3":1,"p2":2}"#));
}

#[test]
fn inline_schemas_are_as_strict_as_others() {
    let grammar = compiled(&GrammarSource::Lark(
        "start: \"d: \" %json {\"format\":\"date\",\"type\":\"string\"} \"!\"".to_owned(),
    ));
    assert!(accepts(&grammar, r#"d: "2024-02-29"!"#));
    assert!(!accepts(&grammar, r#"d: "2023-02-29"!"#));
}

#[test]
fn descriptions_are_no_constraints() {
    let text = r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","$id":"urn:x","title":"T","description":"D",
        "default":1,"examples":[2],"deprecated":true,"readOnly":true,"writeOnly":true,"$comment":"c","x-order":1,
        "type":"integer","minimum":0,"$defs":{"unused":{"not":{}}}}"#;
    assert!(accepts(&compiled(&schema(text)), "7"));
}

#[test]
fn formats_allow_what_validators_accept() {
    let long = "a".repeat(64);
    let wide = format!("{long}@{}", vec!["b".repeat(62); 3].join("."));
    let cases = [
        ("date", "2024-02-29", "2023-02-29"),
        ("date", "2000-02-29", "1900-02-29"),
        ("date-time", "2023-02-28T23:59:59Z", "2023-02-28T10:59:60Z"),
        ("time", "10:59:59.5Z", "10:59:60Z"),
        ("email", &wide, &format!("a{long}@b.org")),
        ("email", "a@b.org", &format!("a@{}.org", "b".repeat(64))),
    ];
    for (format, right, wrong) in cases {
        let grammar = compiled(&schema(&format!(r#"{{"items":{{"type":"string","format":"{format}"}}}}"#)));
        assert!(accepts(&grammar, &format!(r#"["{right}"]"#)), "{format} {right}");
        assert!(!accepts(&grammar, &format!(r#"["{wrong}"]"#)), "{format} {wrong}");
    }
}

#[test]
fn a_keyword_that_asks_for_nothing_is_taken() {
    let grammar = compiled(&schema(r#"{"type":"array","uniqueItems":false,"items":{"const":1}}"#));
    assert!(accepts(&grammar, "[1, 1]"));
}

#[test]
fn errors_name_the_keyword_the_place_and_what_is_allowed() {
    let table = [
        ("{", "`json` must be a JSON schema: EOF"),
        ("[]", "`json` must be an object, true or false at #, got []"),
        (r#"{"items":3}"#, "`json` must be an object, true or false at #/items, got 3"),
        (r#"{"type":"text"}"#, "has an invalid `type` at #: it must be one of null, boolean,"),
        (r#"{"format":"color"}"#, "has an invalid `format` at #: it must be one of date-time,"),
        (r#"{"minLength":-1}"#, "has an invalid `minLength` at #: it must be an integer of at least 0, got -1"),
        (r#"{"maximum":1e16}"#, "has an invalid `maximum` at #: it must be below 2 to the power of 53"),
        (r#"{"const":9007199254740993}"#, "has an invalid `const` at #: it must be below 2 to the power of 53"),
        (r#"{"multipleOf":0}"#, "has an invalid `multipleOf` at #: it must be above 0"),
        (r##"{"$ref":"#/$defs/a"}"##, "has a `$ref` to \"#/$defs/a\" at #, which does not exist"),
        (r#"{"$ref":"https://example.com/a"}"#, "has an invalid `$ref` at #: it must be the place of a schema"),
        (r#"{"pattern":"("}"#, "`json` is invalid: "),
        (r#"{"type":"string","minLength":2,"maxLength":1}"#, "`json` is invalid: Unsatisfiable schema"),
        ("false", "`json` is invalid: Unsatisfiable schema: schema is false"),
    ];
    for (text, expected) in table {
        let message = problem(&schema(text));
        assert!(message.contains(expected), "{text}: {message}");
    }
    assert!(
        problem(&GrammarSource::Regex("(?=a)b".to_owned())).starts_with("`regex` is invalid: at 1(8): invalid regex")
    );
    assert!(
        problem(&GrammarSource::Lark("start: nothing".to_owned()))
            .contains("`grammar` is invalid: at 1(8): unknown name")
    );
    assert!(problem(&GrammarSource::Choice(vec![])).contains("`choice` must be 1 to 10000 strings with text, got 0"));
}

#[test]
fn large_grammars_end_soon_in_an_error_or_a_grammar() {
    let nested = |times: usize| "(".repeat(times) + "a" + &")".repeat(times);
    let refs: String =
        (0..2_000).map(|i| format!(r##""d{i}":{{"items":{{"$ref":"#/$defs/d{}"}}}},"##, i + 1)).collect();
    let rules: String = (0..900).map(|i| format!("r{i}: \"a\" r{}\n", i + 1)).collect();
    let sources = [
        GrammarSource::Regex(nested(90)),
        GrammarSource::Regex(nested(5_000)),
        GrammarSource::Regex("(a|b){1000,100000}".to_owned()),
        GrammarSource::Choice((0..10_000).map(|i| format!("choice {i}")).collect()),
        GrammarSource::Lark(format!("start: r0\n{rules}r900: \"b\"")),
        GrammarSource::Lark("start: \"a\"\n".to_owned() + &"x: \"a\"\n".repeat(2_000)),
        schema(&format!(r##"{{"$ref":"#/$defs/d0","$defs":{{{refs}"d2000":{{}}}}}}"##)),
        schema(&format!(r#"{{"enum":[{}0]}}"#, "\"some value\",".repeat(9_000))),
        schema(&("[".repeat(200) + &"]".repeat(200))),
        schema(&format!(r#"{{"description":"{}"}}"#, "x".repeat(300_000))),
        schema(r#"{"multipleOf":9973,"allOf":[{"multipleOf":9967}]}"#),
        schema(r#"{"type":"array","minItems":1000000,"items":{"type":"string","maxLength":1000000000}}"#),
    ];
    let compiler = compiler();
    for source in &sources {
        let begin = std::time::Instant::now();
        if let Err(error) = compiler.compile(source) {
            assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
        }
        assert!(begin.elapsed().as_secs() < 10, "an unoptimised build stays far below a hang");
    }
}

#[test]
fn expressions_that_cost_too_much_at_once_are_refused_in_words() {
    let optional = "a?".repeat(5_000);
    let row = "has a regular expression with too many optional parts in a row";
    let cases = [
        (GrammarSource::Regex(optional.clone()), row),
        (GrammarSource::Regex(format!("x{optional}b")), row),
        (GrammarSource::Regex("(?:[a-f]?|xy)".repeat(5_000)), row),
        (GrammarSource::Regex("a*b*".repeat(3_000)), row),
        (GrammarSource::Lark(format!("start: A\nA: {}", "\"a\"? ".repeat(5_000))), row),
        (GrammarSource::Lark(format!("start: A\nB: \"a\"?\nA: {}", "B ".repeat(5_000))), row),
        (schema(&format!(r#"{{"type":"string","pattern":"^x{optional}$"}}"#)), row),
        (
            GrammarSource::Lark(
                "start: A\nA: ".to_owned()
                    + &[7, 11, 13, 17, 19, 23, 29].map(|times| format!("/(?:[a-z]{{{times}}})*x/")).join(" & "),
            ),
            "combines regular expressions that are too complex",
        ),
    ];
    for (source, words) in cases {
        assert!(problem(&source).contains(words), "{}", problem(&source));
    }
}

#[test]
fn expressions_of_many_alternatives_or_bounded_repeats_are_taken() {
    let words: Vec<_> = (0..2_000).map(|number| format!("{number} words")).collect();
    let sources = [
        GrammarSource::Regex(format!("(?:{})?", words.join("|"))),
        GrammarSource::Regex("a{0,5000}b{0,5000}".to_owned()),
        GrammarSource::Regex("(?:[a-z]?[0-9]?){0,100}".to_owned()),
        GrammarSource::Regex("[A-Z]?[a-z]*,? ?".repeat(20)),
        schema(r#"{"type":"string","pattern":"^[a-z]*[0-9]*(?:-[a-z]*)?$","minLength":3,"maxLength":40}"#),
    ];
    sources.iter().for_each(|source| drop(compiled(source)));
}

#[test]
fn an_ambiguous_grammar_ends_in_words_before_its_steps_grow_long() {
    let rules: String = (0..60).map(|rule| format!("s{rule}: \"a\" | s{rule} s{rule}\n")).collect();
    let names = (0..60).map(|rule| format!("s{rule}")).collect::<Vec<_>>().join(" | ");
    let mut matcher = compiled(&GrammarSource::Lark(format!("start: {names}\n{rules}"))).start();
    let mut steps = (0..100).map(|_| matcher.consume(u32::from(b'a')).and_then(|()| matcher.allowed()));
    let message = steps.find_map(Result::err).unwrap().to_string();
    assert!(message.contains("the grammar can't be matched: ") && message.contains("\nhint: "), "{message}");
}

#[test]
fn a_union_of_many_objects_stays_within_the_limits_of_a_step() {
    let tool = |n: usize| {
        format!(
            r#"{{"type":"object","properties":{{"kind":{{"type":"string"}},"p{n}":{{"type":"integer"}},"q{n}":{{"items":{{}}}}}}}}"#
        )
    };
    let tools = (0..100).map(tool).collect::<Vec<_>>().join(",");
    let grammar = compiled(&schema(&format!(r#"{{"anyOf":[{tools}]}}"#)));
    assert!(accepts(&grammar, r#"{"kind":"a","p7":12,"q7":[1,{"x":[]}]}"#));
}

#[test]
fn equal_sources_share_one_grammar_until_others_push_it_out() {
    let compiler = compiler();
    let source = |number: usize| GrammarSource::Choice(vec![format!("choice {number}")]);
    let first = compiler.compile(&source(0)).unwrap();
    assert!(first == compiler.compile(&source(0)).unwrap());
    (1..=128).for_each(|number| drop(compiler.compile(&source(number)).unwrap()));
    assert!(first != compiler.compile(&source(0)).unwrap());
    assert!(accepts(&first, "choice 0"), "a grammar in use lives on");
    assert!(compiler.made(&first) && !self::compiler().made(&first));
}

#[test]
fn a_vocabulary_without_the_needed_tokens_is_an_error() {
    struct Letters;
    impl Vocabulary for Letters {
        fn num_ids(&self) -> usize {
            1
        }
        fn token_bytes(&self, _: u32) -> Option<&[u8]> {
            Some(b"a")
        }
        fn is_special_token(&self, _: u32) -> bool {
            false
        }
    }
    let message = match GrammarCompiler::new(Arc::new(Letters), vec![]).compile(&GrammarSource::json_object()) {
        Err(Error::InvalidArgument(message)) => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(message, "`json` fails: the grammar can't go on: no token of this model's vocabulary fits");
}
