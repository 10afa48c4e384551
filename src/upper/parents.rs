//! Whether layers were made to lie over one another.

use super::UpperError;
use crate::format::uuid::Uuid;

/// A layer, as far as it says where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerLink {
    /// What messages call it.
    pub name: String,
    /// Its own UUID.
    pub uuid: Option<Uuid>,
    /// The UUID of the layer that it was made over.
    pub parent_uuid: Option<Uuid>,
}

/// Checks that each layer of a stack, given the lowest first, names the one below it as its parent.
///
/// A layer without a parent, or over one without a UUID, says nothing of what it lies over, and passes: upstream's tools write
/// such layers where nobody tells them the UUIDs. Upstream checks none.
///
/// # Errors
/// [`UpperError::Parent`] for the lowest layer that names another one.
pub fn check_parents(layers: impl IntoIterator<Item = LayerLink>) -> Result<(), UpperError> {
    let told = |uuid: Option<Uuid>| uuid.filter(|uuid| !uuid.is_null());
    let mut below = None;
    for LayerLink { name, uuid, parent_uuid } in layers {
        if let (Some(parent), Some(below)) = (told(parent_uuid), below)
            && parent != below
        {
            return Err(UpperError::Parent { name, parent, below });
        }
        below = told(uuid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, uuid: Option<u8>, parent: Option<u8>) -> LayerLink {
        let uuid_of =
            |number: u8| format!("ABC0000{number}-1111-2222-3333-00000000000{number}").parse().unwrap();
        LayerLink { name: name.to_owned(), uuid: uuid.map(uuid_of), parent_uuid: parent.map(uuid_of) }
    }

    #[test]
    fn a_layer_over_another_than_its_parent_is_refused_by_name() {
        let layers = [link("0", Some(1), None), link("1", Some(2), Some(1)), link("2", Some(3), Some(2))];
        check_parents(layers.clone()).unwrap();
        let [bottom, _, top] = layers;
        let error = check_parents([bottom, top]).unwrap_err();
        assert!(matches!(&error, UpperError::Parent { name, .. } if name == "2"), "{error}");
        let text = error.to_string();
        assert!(text.contains("ABC00002") && text.contains("ABC00001"), "{text}");
    }

    #[test]
    fn a_layer_that_names_no_parent_or_lies_over_one_without_a_uuid_passes() {
        let null = LayerLink { parent_uuid: Some(Uuid::NULL), ..link("1", Some(1), None) };
        check_parents([link("0", Some(9), None), null]).unwrap();
        let anonymous = LayerLink { uuid: Some(Uuid::NULL), ..link("0", None, Some(1)) };
        check_parents([anonymous, link("1", Some(9), Some(8))]).unwrap();
    }
}
