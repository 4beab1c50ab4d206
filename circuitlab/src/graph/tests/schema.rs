//! What Neuronpedia asks of a graph's file before it takes it, in our words: which fields there must be, and of what type those are that it
//! knows. Fields that it does not know are let be.

use serde_json::Value;

/// A type that a field may have.
#[derive(Clone, Copy)]
enum Is {
    Text,
    Number,
    Whole,
    Object,
    List,
    Texts,
    Null,
}

impl Is {
    fn holds(self, value: &Value) -> bool {
        let texts = || value.as_array().is_some_and(|items| items.iter().all(Value::is_string));
        match self {
            Self::Text => value.is_string(),
            Self::Number => value.is_number(),
            // A number without a fraction, however it is written.
            Self::Whole => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            Self::Object => value.is_object(),
            Self::List => value.is_array(),
            Self::Texts => texts(),
            Self::Null => value.is_null(),
        }
    }
}

/// A field: its name, whether it must be there, and the types that it may have.
type Field = (&'static str, bool, &'static [Is]);

const GRAPH: &[Field] =
    &[("metadata", true, &[Is::Object]), ("qParams", true, &[Is::Object]), ("nodes", true, &[Is::List]), ("links", true, &[Is::List])];
const METADATA: &[Field] = &[
    ("slug", true, &[Is::Text]),
    ("scan", true, &[Is::Text]),
    ("prompt_tokens", true, &[Is::Texts]),
    ("prompt", true, &[Is::Text]),
    ("node_threshold", false, &[Is::Number]),
    ("feature_details", false, &[Is::Object]),
    ("info", false, &[Is::Object]),
    ("generation_settings", false, &[Is::Object]),
    ("pruning_settings", false, &[Is::Object]),
];
const FEATURE_DETAILS: &[Field] = &[
    ("feature_json_base_url", false, &[Is::Text]),
    ("neuronpedia_source_set", false, &[Is::Text]),
    ("neuronpedia_lorsa_source_set", false, &[Is::Text]),
];
const INFO: &[Field] = &[
    ("description", false, &[Is::Text]),
    ("creator_name", false, &[Is::Text]),
    ("creator_url", false, &[Is::Text]),
    ("source_urls", false, &[Is::List]),
    ("generator", false, &[Is::Object]),
    ("create_time_ms", false, &[Is::Number]),
];
const GENERATOR: &[Field] =
    &[("name", false, &[Is::Text]), ("version", false, &[Is::Text]), ("url", false, &[Is::Text]), ("email", false, &[Is::Text])];
const GENERATION: &[Field] = &[
    ("max_n_logits", false, &[Is::Whole]),
    ("desired_logit_prob", false, &[Is::Number]),
    ("batch_size", false, &[Is::Whole]),
    ("max_feature_nodes", false, &[Is::Whole]),
];
const PRUNING: &[Field] = &[("node_threshold", false, &[Is::Number]), ("edge_threshold", false, &[Is::Number])];
const PARAMS: &[Field] = &[
    ("pinnedIds", false, &[Is::Texts]),
    ("supernodes", false, &[Is::List]),
    ("linkType", false, &[Is::Text]),
    ("clickedId", false, &[Is::Text]),
    ("sg_pos", false, &[Is::Text]),
];
const NODE: &[Field] = &[
    ("node_id", true, &[Is::Text]),
    ("feature", true, &[Is::Whole, Is::Null]),
    ("layer", true, &[Is::Text, Is::Whole]),
    ("ctx_idx", true, &[Is::Whole]),
    ("feature_type", true, &[Is::Text]),
    ("jsNodeId", true, &[Is::Text]),
    ("clerp", true, &[Is::Text]),
    ("influence", false, &[Is::Number, Is::Null]),
    ("activation", false, &[Is::Number, Is::Null]),
];
const LINK: &[Field] = &[("source", true, &[Is::Text]), ("target", true, &[Is::Text]), ("weight", true, &[Is::Number])];

/// What is not as it has to be; empty for a file that is taken.
pub(super) fn faults(graph: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |place: String, value: &Value, fields: &[Field]| {
        if !value.is_object() {
            faults.push(format!("{place} is no object"));
        }
        for (name, needed, types) in fields {
            match value.get(name) {
                None if *needed => faults.push(format!("{place}.{name} is missing")),
                Some(value) if !types.iter().any(|is| is.holds(value)) => faults.push(format!("{place}.{name} is {value}")),
                _ => {}
            }
        }
    };
    check("graph".to_owned(), graph, GRAPH);
    let metadata = &graph["metadata"];
    check("metadata".to_owned(), metadata, METADATA);
    check("qParams".to_owned(), &graph["qParams"], PARAMS);
    let parts = [("feature_details", FEATURE_DETAILS), ("info", INFO), ("generation_settings", GENERATION), ("pruning_settings", PRUNING)];
    for (name, fields) in parts.into_iter().filter(|(name, _)| metadata.get(name).is_some()) {
        check(format!("metadata.{name}"), &metadata[name], fields);
    }
    if let Some(generator) = metadata.pointer("/info/generator") {
        check("metadata.info.generator".to_owned(), generator, GENERATOR);
    }
    for (name, fields) in [("nodes", NODE), ("links", LINK)] {
        for (at, item) in graph[name].as_array().into_iter().flatten().enumerate() {
            check(format!("{name}[{at}]"), item, fields);
        }
    }
    faults
}
