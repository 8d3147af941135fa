package verify

import "testing"

func TestKindText(t *testing.T) {
	t.Parallel()
	for i := range kinds {
		text, err := Kind(i).MarshalText()
		var k Kind
		if err != nil || k.UnmarshalText(text) != nil || k != Kind(i) {
			t.Errorf("kind %d is written %q and read as %d", i, text, k)
		}
	}
	k := Refused
	if err := k.UnmarshalText([]byte("harmless")); err == nil || k != Refused {
		t.Errorf("an unknown kind is read as %v, %v", k, err)
	}
}
