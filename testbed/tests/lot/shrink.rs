//! From a cluster on which something differs to the least of it that still does.

use serde_json::Value;

use super::Drawn;

/// Takes out whatever can be taken out while `differs` still finds something: objects first, then what is in lists
/// inside of them.
pub(crate) fn shrink(drawn: &Drawn, differs: impl Fn(&Drawn) -> bool) -> Drawn {
    let mut least = drawn.clone();
    loop {
        let before = least.objects.to_string().len();
        for list in lists(&least.objects, String::new()) {
            let count =
                |least: &Drawn| least.objects.pointer(&list).and_then(Value::as_array).map_or(0, Vec::len);
            for place in (0..count(&least)).rev() {
                let mut without = least.clone();
                if let Some(Value::Array(items)) = without.objects.pointer_mut(&list) {
                    items.remove(place);
                }
                if differs(&without) {
                    least = without;
                }
            }
        }
        if least.objects.to_string().len() == before {
            return least;
        }
    }
}

/// The paths of all lists, the outer ones first. Those of an object that was taken out meanwhile lead nowhere, or to
/// another's: that is no harm, for whatever is taken out is tried.
fn lists(value: &Value, path: String) -> Vec<String> {
    let mut found = Vec::new();
    match value {
        Value::Array(items) => {
            found.push(path.clone());
            for (place, item) in items.iter().enumerate() {
                found.extend(lists(item, format!("{path}/{place}")));
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                found.extend(lists(field, format!("{path}/{name}")));
            }
        }
        _ => {}
    }
    found
}
