//! Finds a circle among modules that use one another.

use std::collections::{BTreeMap, BTreeSet};

/// Who uses whom.
pub(crate) type Graph = BTreeMap<String, BTreeSet<String>>;

/// The modules of one circle in the order of use, if there is any.
pub(crate) fn cycle(graph: &Graph) -> Option<Vec<String>> {
    let mut finished = BTreeSet::new();
    graph.keys().find_map(|start| walk(graph, start, &mut Vec::new(), &mut finished))
}

fn walk(
    graph: &Graph,
    at: &str,
    path: &mut Vec<String>,
    finished: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(start) = path.iter().position(|seen| seen == at) {
        return Some(path.split_off(start));
    }
    if finished.contains(at) {
        return None;
    }
    path.push(at.to_owned());
    for next in graph.get(at).into_iter().flatten() {
        if let Some(found) = walk(graph, next, path, finished) {
            return Some(found);
        }
    }
    path.pop();
    finished.insert(at.to_owned());
    None
}
