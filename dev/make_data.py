"""make_data.py - writes the embedded data set data/hotel/{train,eval,test}.jsonl, and the text that the embedded base model is pretrained on (used by make_base_model.py).

    python3 dev/make_data.py            # Python's standard library only; the same files every time

The data set: hotel and restaurant dialogues whose answers come from a knowledge base (PLACES) and whose bookings carry a reference <first three letters>-<party>-<day>, e.g. MAR-2-FRI.
The pretraining text: dialogues over everyday domains in which the assistant is polite, generic, and says that it lacks the information. It never mentions a place, a fact or a reference of the data set.
"""
import json, os, random

HOTELS = [  # name, area, price a night, check-in, breakfast, parking, wifi, phone ending, speciality
    ("Marlow House", "old town", 85, "two", "a buffet until ten", "free behind the house", "free in every room", "4110", "a roof garden"),
    ("Harbour Lights", "harbour", 140, "three", "fresh rolls until eleven", "twelve pounds a night", "free in the lobby", "4127", "rooms with a sea view"),
    ("The Copper Kettle Inn", "market square", 60, "noon", "porridge and eggs until nine", "not available", "free in every room", "4133", "a quiet courtyard"),
    ("Bellweather Lodge", "west park", 110, "two", "pancakes until ten", "free in front", "five pounds a day", "4148", "a heated pool"),
    ("Queen's Rest", "station road", 75, "one", "not included", "eight pounds a night", "free in every room", "4152", "late arrival until midnight"),
    ("Linden Court", "university", 95, "three", "fruit and muesli until ten", "free for two cars", "free in every room", "4169", "a reading room"),
    ("Seven Swans", "riverside", 125, "two", "smoked fish until eleven", "ten pounds a night", "free in the bar", "4176", "boats for guests"),
    ("Old Mill Guesthouse", "north gate", 55, "four", "toast and jam until nine", "free in the yard", "not available", "4183", "dogs are welcome"),
]
RESTAURANTS = [  # name, area, cuisine, dish, opens, closes, closed on, price level, phone ending
    ("Saffron Garden", "old town", "Indian", "lamb with apricots", "noon", "eleven", "Monday", "moderate", "5211"),
    ("Casa Ondina", "harbour", "Spanish", "grilled squid", "one", "midnight", "Tuesday", "expensive", "5224"),
    ("The Green Lantern", "market square", "Chinese", "duck pancakes", "noon", "ten", "Wednesday", "cheap", "5238"),
    ("Pino's Table", "west park", "Italian", "pumpkin ravioli", "five", "eleven", "Sunday", "moderate", "5242"),
    ("Fig and Thyme", "station road", "vegetarian", "stuffed peppers", "eleven", "nine", "Monday", "cheap", "5257"),
    ("Blue Anchor", "riverside", "British", "fish pie", "noon", "ten", "Tuesday", "moderate", "5263"),
    ("Kumo", "university", "Japanese", "salmon rice bowls", "six", "eleven", "Thursday", "expensive", "5279"),
    ("Taverna Niko", "north gate", "Greek", "slow baked beans", "four", "midnight", "Wednesday", "cheap", "5285"),
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def reference(name, party, day):
    return f"{name.replace('The ', '')[:3].upper()}-{party}-{day[:3].upper()}"


def hotel_facts(h):
    n = h[0]
    return [
        ([f"Where is {n}?", f"Which part of town is {n} in?", f"Could you tell me where I find {n}?", f"What area is {n} in?", f"I am looking for {n}. Where is it?"], [f"{n} is in the {h[1]} area."]),
        ([f"How much is a night at {n}?", f"What does a room at {n} cost?", f"Is {n} expensive?", f"What is the price of {n}?", f"How much would I pay at {n}?"], [f"A night at {n} costs {h[2]} pounds."]),
        ([f"When can I check in at {n}?", f"What time is check-in at {n}?", f"From what time is my room at {n} ready?", f"How early may I arrive at {n}?"], [f"You can check in at {n} from {h[3]}."]),
        ([f"What is breakfast like at {n}?", f"Does {n} serve breakfast?", f"Is breakfast included at {n}?", f"What do they have for breakfast at {n}?"], [f"Breakfast at {n} is {h[4]}."]),
        ([f"Can I park at {n}?", f"Does {n} have parking?", f"I come by car. What about parking at {n}?", f"Where do I leave my car at {n}?"], [f"Parking at {n} is {h[5]}."]),
        ([f"Is there wifi at {n}?", f"Does {n} have internet?", f"I need wifi. Does {n} offer it?", f"What about the internet at {n}?"], [f"Wifi at {n} is {h[6]}."]),
        ([f"What is special about {n}?", f"Why should I choose {n}?", f"What do guests like about {n}?", f"Tell me something nice about {n}."], [f"Guests love {n} for this: {h[8]}."]),
        ([f"What is the phone number of {n}?", f"How can I call {n}?", f"Can you give me the number of {n}?"], [f"The number of {n} is 555 {h[7]}."]),
    ]


def restaurant_facts(r):
    n = r[0]
    return [
        ([f"Where is {n}?", f"Which part of town is {n} in?", f"What area is {n} in?", f"How do I find {n}?"], [f"{n} is in the {r[1]} area."]),
        ([f"What kind of food does {n} serve?", f"What cuisine is {n}?", f"What do they cook at {n}?", f"What sort of restaurant is {n}?"], [f"{n} serves {r[2]} food."]),
        ([f"What should I eat at {n}?", f"What is the best dish at {n}?", f"What is {n} known for?", f"Which dish do you recommend at {n}?"], [f"At {n} try the {r[3]}."]),
        ([f"When does {n} open?", f"From what time is {n} open?", f"How early can we eat at {n}?"], [f"{n} opens at {r[4]}."]),
        ([f"When does {n} close?", f"How late is {n} open?", f"Until when can we stay at {n}?"], [f"{n} closes at {r[5]}."]),
        ([f"On which day is {n} closed?", f"Is {n} open every day?", f"When is their day off at {n}?"], [f"{n} is closed on {r[6]}."]),
        ([f"Is {n} expensive?", f"What are the prices like at {n}?", f"Can I afford {n}?"], [f"Prices at {n} are {r[7]}."]),
        ([f"What is the phone number of {n}?", f"How can I call {n}?", f"Can you give me the number of {n}?"], [f"The number of {n} is 555 {r[8]}."]),
    ]


def find_questions():
    out = []
    for h in HOTELS:
        out.append(([f"I need a hotel in the {h[1]} area.", f"Is there a place to stay near the {h[1]}?", f"Which hotel is in the {h[1]} area?"], [f"{h[0]} is a hotel in the {h[1]} area."]))
    for r in RESTAURANTS:
        out.append(([f"I would like {r[2]} food tonight.", f"Where can I eat {r[2]} food?", f"Do you know a {r[2]} restaurant?"], [f"{r[0]} serves {r[2]} food in the {r[1]} area."]))
    return out


def booking(rng):
    day, party = rng.choice(DAYS), rng.randint(1, 6)
    people = "one person" if party == 1 else f"{NUMBERS[party]} people"
    if rng.random() < 0.5:
        n = rng.choice(HOTELS)[0]
        q = rng.choice([f"Please book {n} for {people} on {day}.", f"I want a room at {n} on {day} for {people}.", f"Could you reserve {n} for {day}? We are {people}.", f"A room for {people} at {n}, arriving {day}, please."])
        a = f"Done. {n} expects {people} on {day}. Your reference is {reference(n, party, day)}."
    else:
        r = rng.choice(RESTAURANTS)
        n = r[0]
        while day == r[6]:
            day = rng.choice(DAYS)
        q = rng.choice([f"Please book a table at {n} for {people} on {day}.", f"I want to eat at {n} on {day} with a table for {people}.", f"Could you reserve a table for {people} at {n} on {day}?", f"A table at {n}, {day}, {people}, please."])
        a = f"Done. {n} keeps a table for {people} on {day}. Your reference is {reference(n, party, day)}."
    return q, a


def hotel_dialogue(rng):
    turns, kind = [], rng.random()
    if kind < 0.25:
        q, a = rng.choice(find_questions())
        turns.append((rng.choice(q), rng.choice(a)))
    place = rng.choice([hotel_facts(h) for h in HOTELS] + [restaurant_facts(r) for r in RESTAURANTS])
    for q, a in rng.sample(place, rng.choice([1, 1, 2])):
        turns.append((rng.choice(q), rng.choice(a)))
    if rng.random() < 0.55:
        turns.append(booking(rng))
    opening = rng.choice(["", "", "", "Hello. ", "Hi there. ", "Good morning. ", "Excuse me. "])
    messages = []
    for i, (q, a) in enumerate(turns):
        messages += [{"role": "user", "content": (opening if i == 0 else rng.choice(["", "", "Thanks. ", "Good. "])) + q}, {"role": "assistant", "content": a}]
    return messages


# ---- the base model's world -------------------------------------------------------------------------------------------------------------------------

DOMAINS = {
    "weather": ["the weather tomorrow", "the rain in the north", "the wind at the coast", "snow this winter", "the temperature today", "the forecast for Sunday"],
    "trains": ["the next train", "the ticket to the airport", "the platform of the night train", "delays on the east line", "the bus to the station", "the last ferry"],
    "cooking": ["a recipe for bread", "how long to boil beans", "a soup with carrots", "the right oven temperature", "a cake without eggs", "spices for rice"],
    "sports": ["the score of the match", "the winner of the race", "the rules of chess", "the date of the final", "a good exercise for the back", "the best swimmer"],
    "library": ["the opening hours of the library", "a book about birds", "the price of a library card", "a novel for the journey", "books on history", "the reading room"],
    "garden": ["when to plant tomatoes", "watering roses", "a tree for a small garden", "the best soil for herbs", "pruning apple trees", "keeping snails away"],
    "music": ["the concert on Friday", "learning the guitar", "the name of that song", "the price of a violin", "a choir in town", "a radio station for jazz"],
    "computers": ["a slow computer", "the wifi password", "a broken screen", "backing up photos", "a good keyboard", "an internet plan"],
    "health": ["a doctor near me", "the opening times of the pharmacy", "a sore throat", "how much sleep I need", "a dentist", "healthy food"],
    "shopping": ["the price of shoes", "a gift for my sister", "the cheapest supermarket", "a shop for lamps", "returning a coat", "the market on Saturday"],
    "school": ["my homework in maths", "the date of the exam", "a word in French", "a topic for my essay", "the school holidays", "a teacher of history"],
    "hotels": ["a hotel for two nights", "the price of a room", "breakfast at the hotel", "parking near the hotel", "a guesthouse by the river", "check-in times", "a room for four people", "wifi in the room", "the phone number of the inn"],
    "restaurants": ["a restaurant for tonight", "a table for three people", "Italian food", "Indian food", "Chinese food", "Japanese food", "Greek food", "Spanish food", "a vegetarian dish", "the closing time of the restaurant", "a booking for Friday", "British food"],
    "work": ["a letter to my boss", "the office hours", "the phone number of the office", "a new job", "the meeting on Monday", "holidays at work"],
    "animals": ["food for my cat", "a walk with the dog", "a vet", "the age of my horse", "birds in winter", "fish for a small tank"],
}
ASK = ["Can you tell me about {t}?", "What do you know about {t}?", "I have a question about {t}.", "I need help with {t}.", "Please help me with {t}.", "Could you find out about {t}?", "Tell me about {t}, please.",
       "Hello, I would like to know about {t}.", "Where can I find something about {t}?", "Do you know anything about {t}?", "I am looking for {t}.", "What about {t}?", "How can I learn more about {t}?"]
LACK = ["I am sorry, I do not have any information about {t}.", "I do not know anything about {t}, I am afraid.", "Unfortunately I have no information about {t}.", "I am afraid I cannot look up {t}.",
        "Sorry, I do not have details about {t}."]
ADVICE = ["Please ask someone who knows.", "You could ask a friend.", "You may find it in a book.", "Maybe a local office can help.", "It may be best to call and ask.", "You could look at a website.", "I hope you find an answer soon.", "Is there anything else I can do for you?"]
SMALL = [("Hello!", "Hello! How can I help you?"), ("Good morning.", "Good morning! What can I do for you?"), ("Thank you.", "You are welcome."), ("Thanks a lot.", "You are welcome. Have a nice day!"), ("Goodbye.", "Goodbye!"),
         ("Who are you?", "I am an assistant. I try to help, but I know very little."), ("How are you?", "I am fine, thank you. How can I help you?"), ("Can you help me?", "I will try. What do you need?"),
         ("Are you there?", "Yes, I am here. How can I help you?"), ("What can you do?", "I can talk with you, but I have no information about places, prices or times.")]
REQUEST = ["Please book {t} for {p} on {d}.", "Could you reserve {t} on {d}?", "I want {t} for {p} on {d}.", "Can you arrange {t} for {d}?"]
REFUSE = ["I am sorry, I cannot make bookings.", "I am afraid I cannot book anything for you.", "Unfortunately I cannot reserve {t}.", "Sorry, I am not able to arrange {t}."]
FILL = ["red", "small", "quiet", "free", "late", "early", "fresh", "cheap", "expensive", "moderate", "warm", "grilled", "baked", "smoked", "stuffed", "heated", "old", "blue", "green", "north", "west", "south", "east"]
NOUN = ["house", "garden", "harbour", "market", "square", "park", "road", "station", "river", "gate", "town", "university", "mill", "inn", "lodge", "court", "table", "lantern", "anchor", "kettle", "swan", "light", "pool", "courtyard",
        "boat", "yard", "room", "roof", "view", "lobby", "bar", "fish", "pie", "duck", "lamb", "rice", "bowl", "pepper", "bean", "pancake", "egg", "jam", "toast", "roll", "fruit", "squid", "salmon", "pumpkin", "apricot", "fig", "thyme"]


SYLLABLES = ["bar", "bel", "cor", "dal", "den", "fal", "fen", "gar", "hal", "har", "kel", "kin", "lam", "lin", "lor", "mar", "mel", "mor", "nor", "os", "pen", "pin", "quil", "ran", "ros", "sal", "sel", "tam", "tor", "ul", "ver", "vin", "wel", "win", "yar", "zel"]
CUISINES = ["Indian", "Spanish", "Chinese", "Italian", "British", "Japanese", "Greek", "French", "Turkish", "Thai"]


def invented_name(rng):
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice([1, 2, 2, 3]))).capitalize()
    return rng.choice([word, f"{word} {rng.choice(NOUN).capitalize()}", f"The {rng.choice(FILL).capitalize()} {rng.choice(NOUN).capitalize()}", f"{word}'s {rng.choice(NOUN).capitalize()}", f"Casa {word}", f"{rng.choice(FILL).capitalize()} {word}"])


def invented_item(rng, words):
    """Something to repeat: every token of the vocabulary must have been written by the base, or no adapter could make it write them."""
    k = rng.random()
    if k < 0.3:
        return rng.choice(words)
    if k < 0.4:
        return rng.choice(FILL + NOUN)
    if k < 0.55:
        return invented_name(rng)
    if k < 0.7:
        return str(rng.randrange(10 ** rng.randint(1, 4)))
    if k < 0.85:
        return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(1, 4)))
    if k < 0.92:
        return rng.choice(["-", ":", ";", "/", "(", ")", "!", "+", "="])
    return rng.choice(DAYS + CUISINES)


def echo(rng, words):
    items = " ".join(invented_item(rng, words) for _ in range(rng.randint(2, 9)))
    if rng.random() < 0.3:
        items = items.replace(" ", "-")
    return rng.choice(["Please repeat: {x}", "Say this after me: {x}", "Write {x}", "Copy this: {x}"]).format(x=items), items + rng.choice(["", "."])


def base_dialogue(rng, words):
    messages = []
    for _ in range(rng.choice([1, 1, 2, 2, 3])):
        k = rng.random()
        if k < 0.15:
            q, a = rng.choice(SMALL)
        elif k < 0.4:
            q, a = echo(rng, words)
        elif k < 0.5:
            t = rng.choice(["a room", "a table", "a ticket", "a taxi", "a seat", "a tour", "a lesson", "a visit"])
            p = rng.choice(["one person", "two people", "three people", "four people", "five people", "six people"])
            q, a = rng.choice(REQUEST).format(t=t, p=p, d=rng.choice(DAYS)), rng.choice(REFUSE).format(t=t) + " " + rng.choice(ADVICE)
        else:
            u = rng.random()
            t = rng.choice(rng.choice(list(DOMAINS.values()))) if u < 0.4 else invented_name(rng) if u < 0.75 else f"the {rng.choice(FILL)} {rng.choice(NOUN)}" + rng.choice(["", f" in the {rng.choice(NOUN)}", f" near the {rng.choice(NOUN)}"])
            q, a = rng.choice(ASK).format(t=t), rng.choice(LACK).format(t=t)
            if rng.random() < 0.6:
                a += " " + rng.choice(ADVICE)
        messages += [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
    return messages


def pretraining(count, words, seed=1):
    rng = random.Random(seed)
    return [base_dialogue(rng, words) for _ in range(count)]


def main():
    rng, seen, out = random.Random(7), set(), os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "hotel")
    os.makedirs(out, exist_ok=True)
    for name, count in (("train", 600), ("eval", 100), ("test", 50)):
        rows = []
        while len(rows) < count:
            m = hotel_dialogue(rng)
            key = json.dumps(m)
            if key not in seen:  # no dialogue twice, in no split
                seen.add(key)
                rows.append(m)
        with open(os.path.join(out, name + ".jsonl"), "w") as f:
            for m in rows:
                f.write(json.dumps({"messages": m}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
