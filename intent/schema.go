package intent

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Schema is the JSON Schema (2020-12) of an intent file, for editors. It is
// made from the table of the language: what it refuses Load refuses too. Load
// refuses more, such as a name that is defined nowhere.
func Schema() []byte {
	root := language().schema()
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["$id"] = "urn:merlon:schema:intent"
	root["title"] = "Merlon intent"
	root["description"] = "What the services of an estate are, and who may call whom. What is not allowed is denied."
	delete(root, "required") // of all files together
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		return nil // unreachable: the tree is maps, lists and texts
	}
	return out.Bytes()
}

type object = map[string]any

func (s *shape) schema() object {
	if s.any {
		return object{}
	}
	var kinds []any
	if s.text != nil {
		kinds = append(kinds, s.text.schema())
	}
	if s.object != nil {
		kinds = append(kinds, schemaOf(s.object))
	}
	if s.dict != nil {
		o := object{"type": "object", "additionalProperties": s.dict.schema()}
		if s.names.pattern != "" {
			o["propertyNames"] = object{"pattern": s.names.pattern}
		}
		if !s.empty {
			o["minProperties"] = 1
		}
		kinds = append(kinds, o)
	}
	if s.list != nil {
		o := object{"type": "array", "items": s.list.schema()}
		if !s.empty {
			o["minItems"] = 1
		}
		kinds = append(kinds, o)
	}
	if len(kinds) == 1 {
		return kinds[0].(object)
	}
	return object{"anyOf": kinds}
}

func schemaOf(keys []key) object {
	properties, required := object{}, []any{}
	for i := range keys {
		k := &keys[i]
		o := k.shape.schema()
		o["description"] = k.description()
		properties[k.name] = o
		if k.required {
			required = append(required, k.name)
		}
	}
	o := object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		o["required"] = required
	}
	return o
}

// description is the meaning of a key and its default, without the marks of a
// reference.
func (k *key) description() string {
	text := k.doc
	if k.def != "" {
		text += " Default: " + k.def + "."
	}
	return strings.ReplaceAll(text, "`", "")
}

func (t *text) schema() object {
	switch {
	case t.enum != nil:
		values := []any{}
		for _, word := range t.enum {
			values = append(values, word)
			if t.number { // YAML reads it as something else when it is not quoted
				values = append(values, json.RawMessage(word))
			}
		}
		return object{"enum": values}
	case t.integer:
		return object{"type": "integer", "minimum": 1, "maximum": maxCount}
	case t.number:
		o := object{"type": []any{"string", "number", "boolean"}}
		if t.pattern != "" {
			o["pattern"] = t.pattern
		}
		return o
	case t.pattern != "":
		return object{"type": "string", "pattern": t.pattern}
	}
	return object{"type": "string"}
}
