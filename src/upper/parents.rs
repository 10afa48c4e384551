//! Whether layers were made to lie over one another.

use super::UpperError;
use crate::format::{lsmt::Header, uuid::Uuid};

/// Checks that each layer names the one below it as its parent; `layers` are the names and headers (of a read-only layer, the
/// trailers) of a stack, the lowest first.
///
/// A layer without a parent, or over one without a UUID, says nothing of what it lies over, and passes: upstream's tools write
/// such layers where nobody tells them the UUIDs. Upstream checks none.
///
/// # Errors
/// [`UpperError::Parent`] for the lowest layer that names another one.
pub fn check_parents<'a>(layers: impl IntoIterator<Item = (&'a str, &'a Header)>) -> Result<(), UpperError> {
    let told = |uuid: Option<Uuid>| uuid.filter(|uuid| !uuid.is_null());
    let mut below = None;
    for (name, header) in layers {
        if let (Some(parent), Some(below)) = (told(header.parent_uuid), below)
            && parent != below
        {
            return Err(UpperError::Parent { name: name.to_owned(), parent, below });
        }
        below = told(header.uuid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::lsmt::data_header;

    fn header(uuid: &str, parent: &str) -> Header {
        data_header(false, uuid.parse().unwrap(), parent.parse().ok(), 0)
    }

    #[test]
    fn a_layer_over_another_than_its_parent_is_refused_by_name() {
        let uuids: Vec<String> =
            (1..4).map(|k| format!("ABC0000{k}-1111-2222-3333-00000000000{k}")).collect();
        let (bottom, middle) = (header(&uuids[0], ""), header(&uuids[1], &uuids[0]));
        let top = header(&uuids[2], &uuids[1]);
        assert!(check_parents([("0", &bottom), ("1", &middle), ("2", &top)]).is_ok());
        let error = check_parents([("0", &bottom), ("2", &top)]).unwrap_err();
        assert!(matches!(&error, UpperError::Parent { name, .. } if name == "2"), "{error}");
        assert!(error.to_string().contains(&uuids[1]) && error.to_string().contains(&uuids[0]), "{error}");
    }

    #[test]
    fn a_layer_that_names_no_parent_or_lies_over_one_without_a_uuid_passes() {
        let named = "ABC00001-1111-2222-3333-000000000001";
        let silent = header(named, "00000000-0000-0000-0000-000000000000");
        let mut anonymous = header(named, named);
        anonymous.uuid = None;
        let top = header(named, "ABC00009-1111-2222-3333-000000000001");
        assert!(check_parents([("0", &top), ("1", &silent)]).is_ok());
        assert!(check_parents([("0", &anonymous), ("1", &top)]).is_ok());
    }
}
