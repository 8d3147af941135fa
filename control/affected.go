package control

import (
	"cmp"
	"reflect"
	"slices"

	"merlon"
)

// affected finds the places whose part of the intent may differ between two
// versions of it. All is true when that may be every place.
//
// It rests on what policy.Scope takes: the head of the intent; the place's own
// service; the services that it calls and that call it. Where it errs, a gate
// would keep old orders under the name of the new intent, so everything that
// is not plainly local affects every place.
func affected(old, new *force) (places map[merlon.Place]bool, all bool) {
	if old == nil || !reflect.DeepEqual(head(old.intent), head(new.intent)) {
		return nil, true
	}
	places = map[merlon.Place]bool{}
	changed := map[string]bool{}
	for o, n := range pairs(old.intent.Services, new.intent.Services) {
		if o != nil && n != nil && reflect.DeepEqual(o, n) {
			continue
		}
		name := cmp.Or(o, n).Name
		changed[name] = true
		places[merlon.Place{Service: name}] = true
		for _, p := range slices.Concat(old.callers[name], new.callers[name]) {
			places[p] = true
		}
	}
	// A service that calls with a rule is known by name at the callee's place;
	// a rule that is gone has changed its own service. What is in shadow mode
	// may be called by any service.
	for i := range new.intent.Services {
		s := &new.intent.Services[i]
		if len(changed) > 0 && new.shadows(s) || slices.ContainsFunc(s.Rules, func(r merlon.Rule) bool { return changed[r.Caller] }) {
			places[merlon.Place{Service: s.Name}] = true
		}
	}
	return places, false
}

// head is an intent without its services, and without what no place needs.
func head(in *merlon.Intent) merlon.Intent {
	h := *in
	h.Services, h.Tests = nil, nil
	return h
}

// pairs yields the services of two lists by name; one that is in one list only
// comes with nil.
func pairs(old, new []merlon.Service) func(func(o, n *merlon.Service) bool) {
	return func(yield func(o, n *merlon.Service) bool) {
		for len(old) > 0 || len(new) > 0 {
			var o, n *merlon.Service
			if len(old) > 0 && (len(new) == 0 || old[0].Name <= new[0].Name) {
				o = &old[0]
			}
			if len(new) > 0 && (len(old) == 0 || new[0].Name <= old[0].Name) {
				n = &new[0]
			}
			if o != nil {
				old = old[1:]
			}
			if n != nil {
				new = new[1:]
			}
			if !yield(o, n) {
				return
			}
		}
	}
}
