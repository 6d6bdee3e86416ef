//! Tokenizers and chat templates that were made to break the worker: each is refused, and none takes the process.

use super::tests::{folder, message};
use super::*;
use serde_json::{Value, json};
use std::fs;

/// A model directory whose tokenizer.json is changed.
fn tokenizer(change: impl FnOnce(&mut Value)) -> Result<Text, LoadError> {
    let dir = folder();
    let path = dir.path().join("tokenizer.json");
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(&path, json.to_string()).unwrap();
    Text::load(dir.path())
}

fn template(source: &str) -> Result<Text, LoadError> {
    let dir = folder();
    fs::write(dir.path().join("chat_template.jinja"), source).unwrap();
    Text::load(dir.path())
}

fn said(outcome: Result<Text, LoadError>) -> String {
    let error = outcome.err().expect("it is refused");
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    format!("{error}: {}", cause.unwrap_or_default())
}

#[test]
fn tokenizers_that_panic_are_refused_before_they_serve() {
    let unknown = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "Q", "type_id": 0}}],
        "pair": [], "special_tokens": {}});
    assert!(said(tokenizer(|json| json["post_processor"] = unknown)).contains("not a usable tokenizer"));
    let none = json!({"type": "FixedLength", "length": 0});
    assert!(said(tokenizer(|json| json["pre_tokenizer"] = none)).contains("not a usable tokenizer"));
    let everywhere = json!({"type": "Replace", "pattern": {"Regex": "(?=)"}, "content": "b"});
    assert!(tokenizer(|json| json["normalizer"] = everywhere).is_err());
    let empty = json!({"type": "Replace", "pattern": {"String": ""}, "content": "aa"});
    assert!(said(tokenizer(|json| json["normalizer"] = empty)).contains("`normalizer` replaces an empty text"));
}

#[test]
fn ids_that_the_model_has_not_are_refused_before_they_serve() {
    let outside = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
        "special_tokens": {"A": {"id": "A", "ids": [999_999], "tokens": ["x"]}}});
    let text = said(tokenizer(|json| json["post_processor"] = json!({"type": "Sequence", "processors": [outside]})));
    assert!(text.contains("`post_processor` adds id 999999") && text.contains("258 rows"), "{text}");
    let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 258], "cls": ["<s>", 256], "trim_offsets": true,
        "add_prefix_space": false});
    assert!(said(tokenizer(|json| json["post_processor"] = roberta)).contains("adds id 258"));
    let many = json!({"type": "TemplateProcessing", "single": vec![json!({"SpecialToken": {"id": "A", "type_id": 0}}); 65],
        "pair": [], "special_tokens": {"A": {"id": "A", "ids": [1], "tokens": ["x"]}}});
    assert!(said(tokenizer(|json| json["post_processor"] = many)).contains("adds 65 ids"));
}

#[test]
fn texts_do_not_explode() {
    let replace = |times: usize| json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(times)});
    let doubled = json!({"type": "Sequence", "normalizers": vec![replace(2); 40]});
    assert!(said(tokenizer(|json| json["normalizer"] = doubled)).contains("times as long"));
    let huge = json!({"type": "Sequence", "normalizers": vec![replace(1000); 4]});
    assert!(said(tokenizer(|json| json["normalizer"] = huge.clone())).contains("1000000000000 times"));
    let decoders = json!({"type": "Sequence", "decoders": vec![replace(2); 40]});
    assert!(said(tokenizer(|json| json["decoder"] = decoders)).contains("`decoder` can make"));
    let prepended = json!({"type": "Prepend", "prepend": "a".repeat(1000)});
    let prepended = json!({"type": "Sequence", "normalizers": vec![prepended; 300]});
    assert!(said(tokenizer(|json| json["normalizer"] = prepended)).contains("adds 300000 bytes"));
    // What is served is given so little that what it makes of it is bounded.
    let text = tokenizer(|json| json["normalizer"] = replace(64)).unwrap();
    let most = MAX_TEXT / 64;
    assert!(matches!(text.encode(&"b".repeat(most + 1)), Err(TextError::TooLong { .. })));
    assert_eq!(text.encode_chat(&"b".repeat(most)).unwrap().len(), most);
    assert_eq!(text.encode_chat("aa").unwrap().len(), 128);
}

#[test]
fn a_text_that_cannot_fit_is_known_where_each_byte_is_in_a_token() {
    let bytes = Text::load(folder().path()).unwrap();
    // `</s>` is the widest token.
    assert_eq!(bytes.most_bytes(10), Some(40));
    let lowercase = tokenizer(|json| json["normalizer"] = json!({"type": "Lowercase"})).unwrap();
    assert_eq!(lowercase.most_bytes(10), None, "a normalizer may drop bytes");
    let words = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]});
    assert_eq!(tokenizer(|json| json["pre_tokenizer"] = words).unwrap().most_bytes(10), None, "white space is dropped");
    let greedy = tokenizer(|json| json["added_tokens"][0]["lstrip"] = json!(true)).unwrap();
    assert_eq!(greedy.most_bytes(10), None, "a token may take the white space before it");
    assert_eq!(greedy.encode_chat(&format!("{}<s>", " ".repeat(1000))).unwrap(), [256]);
    let fewer = tokenizer(|json| {
        json["model"]["vocab"].as_object_mut().unwrap().remove("a");
    });
    assert_eq!(fewer.unwrap().most_bytes(10), None, "a byte without a token is dropped");
}

#[test]
fn a_panic_in_the_tokenizer_is_an_error_of_the_model() {
    // What a loaded tokenizer never is: the library asserts.
    let panicking = json!({"type": "FixedLength", "length": 0});
    let dir = folder();
    let mut json: Value = serde_json::from_slice(&fs::read(dir.path().join("tokenizer.json")).unwrap()).unwrap();
    json["pre_tokenizer"] = panicking;
    let tokenizer = tokenizer::parse(json.to_string().as_bytes()).unwrap();
    let error = tokenizer::ids(&tokenizer, "SECRET", true).unwrap_err();
    let said = format!("{error} {error:?}");
    assert!(!error.is_of_the_request() && said.contains("Panicked") && !said.contains("SECRET"), "{said}");
}

#[test]
fn no_template_is_too_deep_to_compile() {
    // Each nests by few bytes; what the language bounds itself is refused by it.
    let nests = ["not ", "-", "- ", "(", "[", "{1:"];
    let chains = [".a", "+x", "()", "|e", "[0]", "~x", "**x", " and x", " if x else x", "<x", "[:]", " is odd"];
    let fill = |part: &str| part.repeat((chat::MAX_SOURCE - 64) / part.len());
    let nested = nests.iter().map(|part| format!("{{{{ {}1 }}}}", fill(part)));
    // Quadratic to compile: an eighth is as deep as the others.
    let chained = chains.iter().map(|part| {
        let whole = fill(part);
        format!(
            "{{{{ x{} }}}}",
            if part.starts_with(['+', '~', '*']) { &whole[..whole.len() / 8 / 6 * 6] } else { &whole }
        )
    });
    let blocks = [format!("{{% if x %}}{}{{% endif %}}", fill("{%elif x%}")), fill("{%if x%}"), fill("{%for x in y%}")];
    for source in nested.chain(chained).chain(blocks) {
        assert!(source.len() <= chat::MAX_SOURCE);
        let compiled = Template::compile(source.clone());
        drop(compiled);
    }
    let long = said(template(&" ".repeat(chat::MAX_SOURCE + 1)));
    assert!(long.contains("`chat_template` has 65537 bytes"), "{long}");
}

#[test]
fn no_value_is_too_deep_to_drop_or_to_write() {
    // Sixty levels a step, until the fuel is out or `ns.n` steps are done.
    let (open, close) = ("[".repeat(60), "]".repeat(60));
    let build = |steps: usize| {
        format!(
            "{{% set ns=namespace(x=[]) %}}{{% for i in range({steps}) %}}{{% set ns.x={open}ns.x{close} %}}{{% endfor %}}"
        )
    };
    let steps = build(400);
    let written = ["{{ ns.x|tojson }}", "{{ ns.x|tojson(indent=2) }}", "{{ ns.x }}", "{{ ns.x|string|length }}"];
    let others = [
        "{{ [ns.x] == [[ns.x]] }}",
        "{{ ns.x < [ns.x] }}",
        "{{ (ns.x ~ 'a')|length }}",
        "{{ {ns.x: 1}|length }}",
        "{{ [ns.x, [ns.x]]|sort|length }}",
        "{{ ns.x.foo.bar }}",
        "{{ ns.x|join|length }}",
        "ok",
    ];
    let render = |source: &str| {
        let template = Template::compile(source.to_owned()).unwrap();
        template.render(&[message("user", "a")], true, &BTreeMap::new())
    };
    for end in written {
        assert!(matches!(render(&format!("{steps}{end}")), Err(TextError::Template(_))), "{end}");
    }
    // What these say is their matter; that they end is this test's.
    let said: Vec<bool> = others.iter().map(|end| render(&format!("{steps}{end}")).is_ok()).collect();
    assert!(said.last() == Some(&true), "the fuel is enough for the steps");
    assert!(render(&build(9999)).is_err(), "and ends");
}

#[test]
fn what_a_template_makes_is_bounded() {
    for source in [
        "{% set ns=namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns=namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% set ns=namespace(x='a') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
        "{{ messages[0].nope.x }}",
        "{{ unknown() }}",
        "{{ [1]|pprint }}",
        "{{ 'a' * 100000000 }}",
        "{% for i in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
    ] {
        let said = said(template(source));
        assert!(
            said.contains("fails on a plain chat") && said.contains("the model's chat template"),
            "{source}: {said}"
        );
    }
    let refusing = template("{% macro no() %}{{ raise_exception('roles') }}{% endmacro %}{{ no() }}").unwrap();
    assert!(matches!(refusing.chat(&[message("user", "a")], true), Err(TextError::Refused(_))), "it says so itself");
}

#[test]
fn a_long_chat_is_served_and_an_endless_one_refused() {
    let text = template(
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('role') }}{% endif %}\
         {% set content = '<|' + m['role'] + '|>\\n' + m['content'] | trim + '<|end|>' %}\
         {% if loop.first %}{% set content = '<s>' + content %}{% endif %}{{ content }}{% endfor %}",
    )
    .unwrap();
    let chat = vec![message("user", "a word or two"); 1500];
    assert!(text.chat(&chat, true).unwrap().len() > 1500 * 20);
    let chat = vec![message("user", "a"); 2000];
    let Err(error @ TextError::ChatTooLong { messages: 2000, .. }) = text.chat(&chat, true) else { panic!() };
    assert!(error.is_of_the_request());
}

#[test]
fn an_example_that_does_not_end_is_not_waited_for() {
    let text = Text::load(folder().path()).unwrap();
    let endless = |_: &Text| -> Result<(), TextError> {
        thread::sleep(Duration::MAX);
        Ok(())
    };
    assert!(matches!(text.tried(endless, Duration::from_millis(1)), Err(TextError::Late { .. })));
}
